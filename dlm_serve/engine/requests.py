"""What the scheduler's process knows about one request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dlm_serve.config import DecodePlan
from dlm_serve.decoding import Mode, RowSettings
from dlm_serve.engine.serving import current

PLAN_KEY = "dlm"
"""Where in a request's `custom_params` its options lie, and after admission its plan."""


@dataclass
class RequestRecord:
    """A request's plan, and its forwards that the scheduler does not see."""

    plan: DecodePlan
    extend_forwards: int = 0
    """Refining forwards that ran inside EXTEND calls."""


def record_of(req: Any) -> RequestRecord:
    """The record of SGLang's `req`, made when it is first asked for."""
    record: RequestRecord | None = getattr(req, "dlm_record", None)
    if record is None:
        record = req.dlm_record = RequestRecord(DecodePlan.model_validate(req.sampling_params.custom_params[PLAN_KEY]))
    return record


def settings_of(req: Any) -> RowSettings:
    """What the device needs to know about SGLang's `req`."""
    plan = record_of(req).plan
    return RowSettings(
        mode=plan.mode,
        block_length=plan.block_length,
        threshold=plan.threshold,
        steps=plan.steps,
        convergence_threshold=plan.convergence_threshold,
        seed=req.sampling_params.sampling_seed,
        # The mask never stands in an answer, but it does in unfinished blocks.
        stop_ids=sorted(_stop_ids(req) - {current().checkpoint.mask_token_id}),
    )


def num_known_of_block(req: Any) -> int | None:
    """How many tokens of its unfinished block, after the first, a resumed diffusion request has emitted.

    None if its next token is the first of a block, which the prefill predicts, or if more prompt is to come.
    """
    plan = record_of(req).plan
    is_last_chunk = req.extend_end == len(req.origin_input_ids) + len(req.output_ids)
    if plan.mode is not Mode.DIFFUSION or not req.output_ids or not is_last_chunk:
        return None
    num_known = (len(req.output_ids) - 1) % plan.block_length
    return None if num_known == plan.block_length - 1 else num_known


def statistics_of(req: Any) -> dict[str, Any]:
    """The `meta_info.dlm` of SGLang's `req` so far."""
    record = record_of(req)
    steps_by_tokens = req.spec_correct_drafts_histogram
    nfe = req.spec_verify_ct + record.extend_forwards
    num_emitting = sum(steps_by_tokens[1:])
    num_emitted = sum(tokens * steps for tokens, steps in enumerate(steps_by_tokens))
    speculates = record.plan.mode is Mode.SELF_SPECULATION and num_emitting > 0
    return {
        "mode": str(record.plan.mode),
        "nfe": nfe,
        "tokens_per_forward": round(len(req.output_ids_through_stop) / nfe, 4) if nfe else None,
        "acceptance_length": round(num_emitted / num_emitting, 4) if speculates else None,
        "block_length": record.plan.block_length,
        "mode_switches": 0,
    }


def _stop_ids(req: Any) -> set[int]:
    """The ids that end SGLang's `req`, as `Req._check_token_based_finish` sees them."""
    if req.sampling_params.ignore_eos:
        return set()
    ids = set(req.sampling_params.stop_token_ids or ()) | set(req.eos_token_ids or ())
    if req.tokenizer is not None:
        ids |= {req.tokenizer.eos_token_id} | set(req.tokenizer.additional_stop_token_ids or ())
    return ids - {None}
