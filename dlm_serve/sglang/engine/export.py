"""Export what is counted through the Prometheus client, into the files that SGLang's `/metrics` merges.

As SGLang's own collectors do: nothing is registered unless `--enable-metrics` is given, on ranks that SGLang measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlm_serve.metrics.counts import Counts, Distribution, Key
from dlm_serve.metrics.registry import METRICS, Kind, Metric


class Exporter:
    """The metrics of one scheduler."""

    def __init__(self, labels: Mapping[str, Any]) -> None:
        """Register all metrics, each with SGLang's `labels` beside its own."""
        # Once SGLang has set PROMETHEUS_MULTIPROC_DIR.
        from prometheus_client import Counter, Gauge, Histogram

        self._labels = {name: str(value) for name, value in labels.items()}
        names = tuple(self._labels)

        def made(metric: Metric) -> Any:
            known: dict[str, Any] = {"documentation": metric.help, "labelnames": (*names, *metric.labels)}
            if metric.kind is Kind.COUNTER:
                return Counter(metric.name, **known)
            if metric.kind is Kind.HISTOGRAM:
                return Histogram(metric.name, buckets=metric.buckets, **known)
            return Gauge(metric.name, multiprocess_mode="mostrecent", **known)

        self._registered = {metric: made(metric) for metric in METRICS}
        self._series: dict[Key, Any] = {}
        self._totals: dict[Key, int] = {}
        self._distributions: dict[Key, Distribution] = {}

    def export(self, counts: Counts) -> None:
        """Raise counters and histograms by what `counts` has grown since the last call."""
        for key, total in counts.totals.items():
            grown = total - self._totals.get(key, 0)
            if grown:
                self._of(key).inc(grown)
                self._totals[key] = total
        for key, now in counts.distributions.items():
            self._observe(key, now)

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge."""
        self._of((metric, labels)).set(value)

    def _observe(self, key: Key, now: Distribution) -> None:
        """Add many values at once, which the client has no function for; SGLang does the same with its latencies."""
        before = self._distributions.setdefault(key, Distribution([0] * len(now.buckets)))
        if now.buckets == before.buckets:
            return
        series = self._of(key)
        series._sum.inc(now.total - before.total)
        for i, number in enumerate(now.buckets):
            if number > before.buckets[i]:
                series._buckets[i].inc(number - before.buckets[i])
        self._distributions[key] = now

    def _of(self, key: Key) -> Any:
        """Return the series of a metric with these labels."""
        found = self._series.get(key)
        if found is None:
            metric, labels = key
            named = dict(zip(metric.labels, labels, strict=True))
            found = self._series[key] = self._registered[metric].labels(**self._labels, **named)
        return found
