"""Count requests as the scheduler's process learns what became of them."""

from __future__ import annotations

from dlm_serve.decoding import StopRule
from dlm_serve.metrics.counts import Counts
from dlm_serve.metrics.meter import Meter
from dlm_serve.metrics.registry import REQUESTS, STEP_SECONDS, Outcome, StepKind
from dlm_serve.routing.costs import StepShape
from dlm_serve.sglang.protocols import ReqLike
from dlm_serve.sglang.requests import state_of
from dlm_serve.sglang.serving import current

COUNTS = Counts()
"""What this process has counted."""

_KINDS = {
    (True, False): StepKind.DECODE,
    (False, True): StepKind.BLOCK,
    (True, True): StepKind.MIXED,
    (False, False): StepKind.OTHER,
}
"""By whether a step has a decode forward, and a block forward."""

_METER = "dlm_meter"
"""The attribute of SGLang's requests that is ours."""


def count_result(req: ReqLike, is_step: bool) -> None:
    """Count what a decode step, or an EXTEND call, did for SGLang's `req`, whose state knows of it.

    Steps that emit nothing are counted with the next that does, or with the end of the request.
    """
    state, is_finished = state_of(req), req.finished()
    if is_step and not (state.last_emitted or is_finished):
        return
    meter: Meter | None = vars(req).get(_METER)
    if meter is None:
        meter = vars(req)[_METER] = Meter()
    if is_step:
        meter.count_block(COUNTS, state, current().commit)
    else:
        meter.count_extend(COUNTS, state, current().commit)
    if is_finished or not may_shrink(req):
        num_new = meter.count_answer(COUNTS, state, len(req.output_ids_through_stop))
        COUNTS.num_decoded += num_new if is_step else 0
    if is_finished:
        meter.count_end(COUNTS, state, Outcome(req.finished_reason.to_json()["type"]))


def count_step_time(shape: StepShape, width: int, ms: float) -> None:
    """Count a decode step that took `ms` milliseconds, as one of the server's widths."""
    kind = _KINDS[shape.num_decode > 0, shape.num_blocks > 0]
    COUNTS.observe(STEP_SECONDS, ms / 1000, kind, str(width))


def count_abort(req: ReqLike) -> None:
    """Count a request that ends while it waits."""
    COUNTS.add(REQUESTS, state_of(req).current.mode, Outcome.ABORT)


def may_shrink(req: ReqLike) -> bool:
    """Return whether tokens of an unfinished answer may be taken back."""
    return state_of(req).plan.stop_rule is StopRule.UPSTREAM
