"""What the scheduler's process knows about one request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dlm_serve.decoding import Commit, Mode, Policy, RowSettings, Sharing
from dlm_serve.decoding.fused import WindowAlgorithm, entropy_below
from dlm_serve.engine.serving import current
from dlm_serve.options.request_rules import PLAN_KEY
from dlm_serve.plan import DecodePlan

STATISTICS_KEY = "dlm"
"""Where in an answer's `meta_info` its statistics are."""


@dataclass
class RequestRecord:
    """A request's plan, and its forwards that the scheduler does not see."""

    plan: DecodePlan
    extend_forwards: int = 0
    """Refining forwards that ran inside EXTEND calls."""
    first_run: range = range(0)
    """Positions of the anchor of the window that the last EXTEND call ran, and of the tokens accepted but the last."""
    is_extended: bool = False
    """Whether what the last EXTEND call decided has no KV yet."""
    last_emitted: int = 0
    """Tokens that the last decode step emitted."""
    steps_before_rest: int | None = None
    """Steps it had taken when an EXTEND call decided all that was left of its answer; None if none did."""

    @property
    def is_decided(self) -> bool:
        """Whether its steps only hand out what an EXTEND call decided, and run no forward."""
        return self.steps_before_rest is not None

    def end_extend(self, req: Any, rest: Sequence[int]) -> None:
        """Note that the EXTEND call of SGLang's `req` left the tokens `rest` to emit, its next token first."""
        num_tokens = len(req.output_ids) + len(rest)
        ends = num_tokens >= req.sampling_params.max_new_tokens or not stop_ids_of(req).isdisjoint(rest)
        self.steps_before_rest = req.spec_verify_ct if ends else None


def record_of(req: Any) -> RequestRecord:
    """The record of SGLang's `req`, made when it is first asked for."""
    record: RequestRecord | None = getattr(req, "dlm_record", None)
    if record is None:
        plan = DecodePlan.model_validate_json(req.sampling_params.custom_params[PLAN_KEY])
        record = req.dlm_record = RequestRecord(plan)
    return record


def shareable_len(req: Any, policy: Policy) -> int:
    """How many of the first tokens of SGLang's `req` have KV that another request with the same tokens may use."""
    num_prompt, num_tokens = len(req.origin_input_ids), len(req.origin_input_ids) + len(req.output_ids)
    record = record_of(req)
    if policy.commit is Commit.FUSED and (record.plan.threshold is not None or record.is_decided):
        # What a step accepts gets its KV from the next one; what an EXTEND call decided, to the end, gets none.
        num_encoded: int = req.extend_end
        return max(num_encoded, num_tokens - 1 - record.last_emitted)
    if policy.sharing is not Sharing.BLOCKS:
        return num_tokens
    # The block of the last token of an answer need not be committed. Where blocks are not anchored, those of an
    # answer lie elsewhere than they would in a prompt.
    last = max(num_prompt, num_tokens - 1) if policy.is_anchored else num_prompt
    return last - last % current().checkpoint.block_size


def is_private(req: Any, policy: Policy) -> bool:
    """Whether the KV that the EXTEND call of SGLang's `req` computes includes some that is not for other requests."""
    return policy.sharing is Sharing.BLOCKS and not policy.is_anchored and bool(req.output_ids)


def settings_of(req: Any) -> RowSettings:
    """What the device needs to know about SGLang's `req`."""
    plan, serving = record_of(req).plan, current()
    return RowSettings(
        mode=plan.mode,
        block_length=plan.block_length,
        threshold=_limit_of(plan),
        steps=plan.steps,
        convergence_threshold=plan.convergence_threshold,
        seed=req.sampling_params.sampling_seed,
        stop_ids=sorted(stop_ids_of(req)) if serving.policy.stops_in_blocks else (),
        is_seeded=serving.policy.is_seeded,
        algorithm=serving.checkpoint.family.algorithms.index(plan.algorithm) if plan.algorithm else 0,
    )


def _limit_of(plan: DecodePlan) -> float | None:
    """The threshold as rows compare with it: of probability, or of entropy in nats."""
    if plan.algorithm == WindowAlgorithm.ENTROPY_CONF and plan.threshold is not None:
        return entropy_below(plan.threshold, current().checkpoint.vocab_size)
    return plan.threshold


@dataclass(frozen=True)
class FirstBlock:
    """The block that an EXTEND call refines, because its own prediction is not the request's next token."""

    start: int
    """Its first position."""
    emitted: list[int]
    """Its first tokens, which the client has already."""
    num_given: int
    """How many of these are not to be found again: the end of a prompt, or a pending token."""

    @property
    def given(self) -> list[int]:
        """The tokens that are not to be found."""
        return self.emitted[: self.num_given]

    def all_given(self) -> FirstBlock:
        """The same block with nothing to be found again."""
        return FirstBlock(self.start, self.emitted, len(self.emitted))

    def goes_on_as(self, tokens: Sequence[int]) -> bool:
        """Whether `tokens`, those found for the block, are the emitted ones and more."""
        return len(tokens) > len(self.emitted) and list(tokens[: len(self.emitted)]) == self.emitted


def first_block_of(req: Any, policy: Policy) -> FirstBlock | None:
    """The block that the EXTEND call of SGLang's `req` refines; None if there is none or more prompt is to come.

    Nothing but its tokens survives the retraction of a request. A block that was emitted in part starts over, as
    it started before, and so ends the same, unless arithmetic depends on what shares a forward.
    """
    tokens = [*req.origin_input_ids, *req.output_ids]
    if req.extend_end != len(tokens):
        return None
    record, num_prompt = record_of(req), len(req.origin_input_ids)
    plan = record.plan
    if plan.mode is Mode.AUTOREGRESSIVE:
        return None
    if policy.commit is Commit.FUSED:
        anchor = record.first_run.start
        # What windows behind a draft agree on is the same wherever the draft began.
        is_partial = len(tokens) - 1 in record.first_run[1:] and not plan.verifies_windows
        return FirstBlock(anchor, tokens[anchor:], 1) if is_partial else last_window_of(req)
    if not policy.is_seeded:
        origin = 0 if policy.is_anchored else num_prompt
        start = len(tokens) - (len(tokens) - origin) % plan.block_length
        return FirstBlock(start, tokens[start:], max(0, num_prompt - start))
    if plan.mode is not Mode.DIFFUSION or not req.output_ids:
        return None
    num_emitted = (len(req.output_ids) - 1) % plan.block_length + 1
    start = len(tokens) - num_emitted
    # Behind a whole block comes the first token of the next, which the prefill predicts.
    return None if num_emitted == plan.block_length else FirstBlock(start, tokens[start:], 1)


def last_window_of(req: Any) -> FirstBlock:
    """The window behind all tokens of SGLang's `req`, whose anchor is the last of them."""
    last = (req.output_ids or req.origin_input_ids)[-1]
    return FirstBlock(len(req.origin_input_ids) + len(req.output_ids) - 1, [last], 1)


def statistics_of(req: Any) -> dict[str, Any]:
    """The `meta_info.dlm` of SGLang's `req` so far."""
    record = record_of(req)
    steps_by_tokens = req.spec_correct_drafts_histogram
    nfe = record.extend_forwards + (
        req.spec_verify_ct if record.steps_before_rest is None else record.steps_before_rest
    )
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


def stop_ids_of(req: Any) -> set[int]:
    """The ids that end SGLang's `req`, as `Req._check_token_based_finish` sees them.

    Without the mask: it never stands in an answer, but it does in unfinished blocks.
    """
    if req.sampling_params.ignore_eos:
        return set()
    ids = set(req.sampling_params.stop_token_ids or ()) | set(req.eos_token_ids or ())
    if req.tokenizer is not None:
        ids |= {req.tokenizer.eos_token_id} | set(req.tokenizer.additional_stop_token_ids or ())
    return ids - {None, current().checkpoint.mask_token_id}
