"""Read SGLang's requests: the state of ours that each carries, and what a family's `Commit` says of it."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

from dlm_serve.decoding import Commit, DecodePlan, Mode, ModeSettings, RequestState, RowOptions, name_of
from dlm_serve.options.request_rules import PLAN, PLAN_KEY
from dlm_serve.sglang.protocols import ReqLike
from dlm_serve.sglang.serving import current

NO_TOKEN = -(1 << 62)
"""What an EXTEND call gives a request without a first token: SGLang appends it, and `DlmReq` takes it away again."""

_STATE = "dlm_state"
"""The attribute of SGLang's requests that is ours."""


def state_of(req: ReqLike) -> RequestState:
    """Return the state of SGLang's `req`, made when it is first asked for."""
    state: RequestState | None = vars(req).get(_STATE)
    if state is None:
        params = req.sampling_params
        state = vars(req)[_STATE] = RequestState(
            _plan_of(params.custom_params[PLAN_KEY]),
            seed=params.sampling_seed,
            stop_ids=frozenset() if params.ignore_eos else end_ids_of(req),
            is_streaming=req.stream,
        )
    return state


def row_options_of(req: ReqLike, commit: Commit, settings: ModeSettings | None = None) -> RowOptions:
    """Return what the device must know about SGLang's `req`, with its current settings or others."""
    state, params = state_of(req), req.sampling_params
    vocab_size = current().checkpoint.vocab_size
    options = commit.row_options(settings or state.current, state.seed, sorted(state.stop_ids), vocab_size)
    return replace(options, temperature=params.temperature, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p)


def known_start_of(req: ReqLike, commit: Commit) -> list[int] | None:
    """Return the tokens with which the block of SGLang's `req` behind its EXTEND call begins.

    None if it begins with the token that is predicted there, or if more of the prompt is to come.
    """
    state, tokens = state_of(req), [*req.origin_input_ids, *req.output_ids]
    if req.extend_end != len(tokens) or state.current.mode is Mode.AUTOREGRESSIVE:
        return None
    return commit.known_start(state, tokens, len(req.origin_input_ids))


def shareable_len(req: ReqLike, commit: Commit) -> int:
    """Return how many of the first tokens of SGLang's `req` have KV that others with the same tokens may use."""
    num_prompt = len(req.origin_input_ids)
    num_tokens = num_prompt + len(req.output_ids)
    block_size = current().checkpoint.block_size
    return commit.shareable_len(state_of(req), num_prompt, num_tokens, req.extend_end, block_size)


def end_step(req: ReqLike, num_emitted: int) -> None:
    """Note that a decode step of SGLang's `req` has emitted the last `num_emitted` of its tokens."""
    state = state_of(req)
    state.end_step(num_emitted)
    if state.history is not None:
        state.history.settle(len(req.output_ids))


def statistics_of(req: ReqLike) -> dict[str, Any]:
    """Return the `meta_info.dlm` of SGLang's `req` so far."""
    state = state_of(req)
    nfe = state.num_steps
    kept = state.history if req.finished() else None
    return {
        "mode": str(state.current.mode),
        "nfe": nfe,
        "tokens_per_forward": round(len(req.output_ids_through_stop) / nfe, 4) if nfe else None,
        "acceptance_length": None if state.acceptance_length is None else round(state.acceptance_length, 4),
        "block_length": state.current.block_length,
        "mode_switches": state.num_switches,
        "tokens": {name_of(choice): tally.num_tokens for choice, tally in state.tallies.items()},
        **({} if kept is None else {"history": [{"start": start, "tokens": ids} for start, ids in kept.forwards]}),
    }


@lru_cache(256)
def _plan_of(text: str) -> DecodePlan:
    """Return the plan that admission wrote; requests that ask for the same share it."""
    return PLAN.validate_json(text)


def end_ids_of(req: ReqLike) -> frozenset[int]:
    """Return the ids that end SGLang's `req` unless it ignores them, but never the mask."""
    ids: set[int | None] = {*(req.sampling_params.stop_token_ids or ()), *(req.eos_token_ids or ())}
    if req.tokenizer is not None:
        ids |= {req.tokenizer.eos_token_id, *(req.tokenizer.additional_stop_token_ids or ())}
    never = current().checkpoint.mask_token_id
    return frozenset(token_id for token_id in ids if token_id not in (None, never))
