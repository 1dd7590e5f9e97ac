"""Read SGLang's requests: the state of ours that each carries, and what a family's `Commit` says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from dlm_serve.decoding import Commit, DecodePlan, FirstBlock, Mode, ModeSettings, RequestState, RowOptions, name_of
from dlm_serve.options.request_rules import PLAN, PLAN_KEY
from dlm_serve.sglang.protocols import ReqLike
from dlm_serve.sglang.serving import current

STATISTICS_KEY = "dlm"
"""Where in an answer's `meta_info` its statistics are."""

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
            stop_ids=_stop_ids_of(req),
            is_streaming=req.stream,
        )
    return state


def row_options_of(req: ReqLike, commit: Commit, settings: ModeSettings | None = None) -> RowOptions:
    """Return what the device must know about SGLang's `req`, with its current settings or others."""
    state, params = state_of(req), req.sampling_params
    vocab_size = current().checkpoint.vocab_size
    options = commit.row_options(settings or state.current, state.seed, sorted(state.stop_ids), vocab_size)
    return replace(options, temperature=params.temperature, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p)


def first_block_of(req: ReqLike, commit: Commit) -> FirstBlock | None:
    """Return the block that the EXTEND call of SGLang's `req` denoises.

    None if there is none, or if more of the prompt is to come.
    """
    state, tokens = state_of(req), [*req.origin_input_ids, *req.output_ids]
    if req.extend_end != len(tokens) or state.current.mode is Mode.AUTOREGRESSIVE:
        return None
    return commit.first_block(state, tokens, len(req.origin_input_ids))


def shareable_len(req: ReqLike, commit: Commit) -> int:
    """Return how many of the first tokens of SGLang's `req` have KV that others with the same tokens may use."""
    num_prompt = len(req.origin_input_ids)
    num_tokens = num_prompt + len(req.output_ids)
    block_size = current().checkpoint.block_size
    return commit.shareable_len(state_of(req), num_prompt, num_tokens, req.extend_end, block_size)


def end_extend(req: ReqLike, rest: list[int]) -> None:
    """Note that the EXTEND call of SGLang's `req` left the tokens `rest` to emit, its next token first."""
    state_of(req).end_extend(rest, req.sampling_params.max_new_tokens - len(req.output_ids))


def end_step(req: ReqLike, num_emitted: int) -> None:
    """Note that a decode step of SGLang's `req` has emitted the last `num_emitted` of its tokens."""
    state = state_of(req)
    state.end_step(num_emitted)
    if state.history is not None and not state.is_decided:
        state.history.settle(len(req.output_ids))


def keep_block(req: ReqLike, start: int, tokens: Sequence[int]) -> None:
    """Note, where SGLang's `req` keeps its history, a forward inside an EXTEND call, over the block at `start`."""
    history = state_of(req).history
    if history is not None:
        history.add(start - len(req.origin_input_ids), tokens)


def statistics_of(req: ReqLike) -> dict[str, Any]:
    """Return the `meta_info.dlm` of SGLang's `req` so far."""
    state = state_of(req)
    kept = state.history if req.finished() else None
    return {
        "mode": str(state.current.mode),
        "nfe": state.nfe,
        "tokens_per_forward": round(len(req.output_ids_through_stop) / state.nfe, 4) if state.nfe else None,
        "acceptance_length": None if state.acceptance_length is None else round(state.acceptance_length, 4),
        "block_length": state.current.block_length,
        "mode_switches": state.num_switches,
        "tokens": {name_of(choice): number for choice, number in state.tokens.items()},
        **({} if kept is None else {"history": [{"start": start, "tokens": ids} for start, ids in kept.forwards]}),
    }


@lru_cache(256)
def _plan_of(text: str) -> DecodePlan:
    """Return the plan that admission wrote; requests that ask for the same share it."""
    return PLAN.validate_json(text)


def _stop_ids_of(req: ReqLike) -> frozenset[int]:
    """Return the ids that end SGLang's `req`, as `Req._check_token_based_finish` sees them, but never the mask."""
    if req.sampling_params.ignore_eos:
        return frozenset()
    ids: set[int | None] = {*(req.sampling_params.stop_token_ids or ()), *(req.eos_token_ids or ())}
    if req.tokenizer is not None:
        ids |= {req.tokenizer.eos_token_id, *(req.tokenizer.additional_stop_token_ids or ())}
    never = current().checkpoint.mask_token_id
    return frozenset(token_id for token_id in ids if token_id not in (None, never))
