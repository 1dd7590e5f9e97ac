"""Declare every metric: what is counted (`counts`), exported (`sglang.engine.export`), described (docs/metrics.md)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dlm_serve.decoding import Phase

PHASE_LABELS = {phase: phase.name.lower() for phase in Phase}


class Kind(StrEnum):
    """What a metric is to Prometheus."""

    COUNTER = "counter"
    HISTOGRAM = "histogram"
    GAUGE = "gauge"


class Outcome(StrEnum):
    """How a request ended: the `type` of its `finish_reason`."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


class StepKind(StrEnum):
    """The forwards of a decode step."""

    DECODE = "decode"
    BLOCK = "block"
    MIXED = "mixed"
    OTHER = "other"


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric; equal to itself alone, so that it is a cheap key."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    """Labels of ours, each with few values. SGLang's own, such as `model_name`, come beside them."""
    help: str
    buckets: tuple[float, ...] = ()
    """Of a histogram: upper bounds, ascending, without infinity."""

    @property
    def series(self) -> tuple[str, ...]:
        """Return the names of its time series."""
        parts = ("_bucket", "_sum", "_count") if self.kind is Kind.HISTOGRAM else ("",)
        return tuple(f"{self.name}{part}" for part in parts)


FORWARD_PASSES = Metric(
    "dlm_forward_passes_total",
    Kind.COUNTER,
    ("mode", "phase"),
    "Forward passes after the prefill, each request's own: the sum of `meta_info.dlm.nfe`.",
)
TOKENS = Metric(
    "dlm_tokens_total",
    Kind.COUNTER,
    ("mode",),
    "Tokens of answers, the prefill's included: the sum of `completion_tokens`.",
)
REQUESTS = Metric(
    "dlm_requests_total",
    Kind.COUNTER,
    ("mode", "outcome"),
    "Requests that ended, by the mode that they ended in.",
)
MODE_SWITCHES = Metric(
    "dlm_mode_switches_total",
    Kind.COUNTER,
    ("from", "to"),
    "Times that a request went on in another mode or block length: the sum of `meta_info.dlm.mode_switches`. "
    "Where only the block length changed, both labels are the same.",
)
TOKENS_PER_FORWARD = Metric(
    "dlm_tokens_per_forward",
    Kind.HISTOGRAM,
    ("mode",),
    "Tokens of an answer over its forward passes, one observation for each answer with any.",
    (0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 2.5, 3, 4, 6, 8, 12, 16, 24, 32),
)
ACCEPTANCE_LENGTH = Metric(
    "dlm_acceptance_length",
    Kind.HISTOGRAM,
    (),
    "Tokens that a verification of self-speculation emitted, the model's own token included.",
    (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 64),
)
DENOISE_STEPS = Metric(
    "dlm_denoise_steps_per_block",
    Kind.HISTOGRAM,
    ("mode",),
    "Forward passes that filled the masks of a block, or drafted it.",
    (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64),
)
STEP_SECONDS = Metric(
    "dlm_step_seconds",
    Kind.HISTOGRAM,
    ("kind", "width"),
    "Seconds from the end of one decode step to the end of the next, by the forwards of the step: decode, block (rows "
    "of up to `width` tokens), mixed (both) or other (windows of drafts).",
    (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5),
)
ROWS = Metric("dlm_rows", Kind.GAUGE, ("mode",), "Requests that decode, by mode.")
WIDTH = Metric("dlm_block_width", Kind.GAUGE, (), "The longest block among the requests that decode; 0 without any.")
KV_SLOTS = Metric(
    "dlm_kv_slots",
    Kind.GAUGE,
    ("state",),
    "KV slots that are free, cached (in the prefix cache, with no request that reads them) or held by requests.",
)

METRICS = (
    FORWARD_PASSES,
    TOKENS,
    REQUESTS,
    MODE_SWITCHES,
    TOKENS_PER_FORWARD,
    ACCEPTANCE_LENGTH,
    DENOISE_STEPS,
    STEP_SECONDS,
    ROWS,
    WIDTH,
    KV_SLOTS,
)
"""All of them, in the order of the documentation."""
