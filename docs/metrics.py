"""Generate docs/metrics.md from the registry of metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from string import Template

from dlm_serve.decoding import Mode
from dlm_serve.metrics.registry import METRICS, PHASE_LABELS, Kind, Metric, Outcome, StepKind

TEXT = Template("""# Metrics

Written by `docs/generate.py` from `dlm_serve/metrics/registry.py`; do not edit.

With `--enable-metrics`, SGLang's `/metrics` has dlm-serve's metrics beside its own, for Prometheus.
[docker/prometheus](../docker/prometheus/prometheus.yml) holds a configuration with
[alert rules](../docker/prometheus/alerts.yml), and [docker/grafana](../docker/grafana/dlm-serve.json) a dashboard of
ten panels.

| metric | kind | labels | meaning |
|---|---|---|---|
$rows

| label | values |
|---|---|
$labels

Each series has SGLang's own labels, too: `model_name`, `engine_type`, `tp_rank`, `pp_rank`, `moe_ep_rank` and, with
replicas, `dp_rank`. The first rank of each replica counts, unless `--enable-metrics-for-all-schedulers` is given.

Counters are exact: they grow with what requests say in `meta_info`, requests that were aborted or retracted included.
A forward pass is counted with the block that it led to, or else at the end of its request.
What the engine computed and no request got, such as a step that overlaps an answer's end, is not counted. `/metrics`
follows once a second while requests run, and at once when the last of them has ended. Requests that were refused with
HTTP 400 are not counted.

Buckets of the histograms:

$buckets

## SGLang's own metrics

dlm-serve runs as a speculative algorithm of SGLang's, which takes every step for a verification of a draft as long as
the widest block. dlm-serve corrects what followed from that:

| figure | where | now |
|---|---|---|
$corrected

`meta_info.dlm` and the metrics above say what these would. SGLang's latencies are right as they are, but know that a
step emits several tokens: inter-token latencies are the time between two chunks, divided by the tokens of the second.
""")

_CORRECTED = (
    (
        "decoded tokens",
        '`sglang:realtime_tokens_total` with `mode="decode"`, `sglang:gen_throughput`, `/v1/loads`, the log',
        "tokens of answers, but for those that prefills gave",
    ),
    ("`output_len`", "the log, with `--enable-request-time-stats-logging`", "tokens of the answer"),
    (
        "acceptance of drafts",
        "`sglang:spec_accept_length`, `sglang:spec_accept_rate`, `sglang:spec_verify_calls_total`",
        "0",
    ),
    (
        "the same",
        "`meta_info.spec_*` and `sglext`, `/v1/loads`, `avg_spec_accept_length` in `/server_info`, the decode log line",
        "absent",
    ),
)

_VALUES: dict[str, Sequence[str]] = {
    "mode, from, to": [mode for mode in Mode if mode is not Mode.AUTO],
    "phase": list(PHASE_LABELS.values()),
    "outcome": list(Outcome),
    "kind": list(StepKind),
    "width": ["the server file's `routing.widths` and `routing.budgets`; 1 without a block forward"],
    "state": ["free", "cached", "held"],
}


def page() -> str:
    """Return the text of docs/metrics.md."""
    return TEXT.substitute(
        rows="\n".join(map(_row, METRICS)),
        corrected="\n".join(f"| {' | '.join(row)} |" for row in _CORRECTED),
        labels="\n".join(f"| {_code(name.split(', '))} | {_values(name)} |" for name in _VALUES),
        buckets="\n".join(
            f"- `{metric.name}`: {', '.join(f'{bound:g}' for bound in metric.buckets)}"
            for metric in METRICS
            if metric.kind is Kind.HISTOGRAM
        ),
    )


def _row(metric: Metric) -> str:
    return f"| `{metric.name}` | {metric.kind} | {_code(metric.labels)} | {metric.help} |"


def _values(label: str) -> str:
    values = [str(value) for value in _VALUES[label]]
    return values[0] if " " in values[0] else _code(values)


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


PAGES: dict[str, Callable[[], str]] = {"metrics.md": page}
"""Files in this folder, and the functions that return their text."""
