"""Names by Prometheus's conventions, and only names that exist in what is built on them."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dlm_serve.metrics.registry import METRICS, Kind, Metric

DOCKER = Path(__file__).parent.parent.parent.parent / "docker"
DASHBOARD: dict[str, Any] = json.loads((DOCKER / "grafana" / "dlm-serve.json").read_text())
PROMETHEUS: dict[str, Any] = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
ALERTS: dict[str, Any] = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())

EXPRESSIONS = [
    *(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]),
    *(rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]),
]
SERIES = {series: metric for metric in METRICS for series in metric.series}


def sglang_names() -> set[str]:
    """The metrics that SGLang's source names."""
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / "srt" / "observability" / "metrics_collector.py"
    return set(re.findall(r'name="(sglang:\w+)"', source.read_text()))


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names(metric: Metric) -> None:
    assert re.fullmatch(r"dlm_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert metric.help.endswith(".")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM)


def test_names_are_different() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_is_asked_for_exists(expression: str) -> None:
    """Ours from the registry with its labels, histograms by their parts; SGLang's as its source names them."""
    ours, theirs = re.findall(r"\bdlm_\w+", expression), re.findall(r"\bsglang:\w+", expression)
    assert ours or theirs or expression.startswith("up{")
    assert set(ours) <= SERIES.keys()
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in theirs} <= sglang_names()
    known = {"le", "instance", "job", "model_name"}.union(*(SERIES[name].labels for name in ours))
    grouped = {label for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in group.split(", ")}
    assert grouped | set(re.findall(r"[{,](\w+)=", expression)) <= known


def test_the_dashboard_shows_every_metric_in_ten_panels() -> None:
    asked = set(re.findall(r"\bdlm_\w+", json.dumps(DASHBOARD["panels"])))
    assert {SERIES[name] for name in asked} == set(METRICS)
    assert [panel["id"] for panel in DASHBOARD["panels"]] == list(range(1, 11))
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == 10
    for panel in DASHBOARD["panels"]:
        legends = re.findall(r"{{(\w+)}}", "".join(target["legendFormat"] for target in panel["targets"]))
        assert set(legends) <= {label for metric in METRICS for label in metric.labels}


def test_prometheus_reads_the_alerts_and_each_says_what_to_do() -> None:
    assert PROMETHEUS["rule_files"] == ["alerts.yml"]
    jobs = [job["job_name"] for job in PROMETHEUS["scrape_configs"]]
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["annotations"].keys() == {"summary", "remedy"}
        assert set(re.findall(r'job="([^"]*)"', rule["expr"])) <= set(jobs)
