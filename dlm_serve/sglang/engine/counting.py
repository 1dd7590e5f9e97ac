"""Count requests as the scheduler's process learns what became of them."""

from __future__ import annotations

from dlm_serve.metrics.meter import Meter
from dlm_serve.metrics.registry import Outcome, StepKind
from dlm_serve.routing.costs import StepShape
from dlm_serve.sglang.engine.requests import state_of
from dlm_serve.sglang.protocols import ReqLike

METER = Meter()
"""What this process counts."""

_KINDS = {
    (True, False): StepKind.DECODE,
    (False, True): StepKind.BLOCK,
    (True, True): StepKind.MIXED,
    (False, False): StepKind.OTHER,
}
"""By whether a step has a decode forward, and a block forward."""


def count_extend(req: ReqLike) -> None:
    """Count the token that an EXTEND call gave SGLang's `req`, if it did, and from now on what its steps do."""
    state = state_of(req)
    state.note_answer(len(req.output_ids))
    METER.begin(state)


def count_end(req: ReqLike) -> None:
    """Count SGLang's `req`, which has finished."""
    outcome = Outcome(req.finished_reason.to_json()["type"])
    METER.end(state_of(req), len(req.output_ids_through_stop), outcome)


def count_abort(req: ReqLike) -> None:
    """Count SGLang's `req`, which ends while it waits, for the first time or to be resumed."""
    METER.end(state_of(req), len(req.output_ids), Outcome.ABORT)


def count_step_time(shape: StepShape, width: int, ms: float) -> None:
    """Count a decode step that took `ms` milliseconds, as one of the server's widths."""
    METER.observe_step(_KINDS[shape.num_decode > 0, shape.num_blocks > 0], width, ms / 1000)
