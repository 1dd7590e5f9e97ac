"""Requests at the door: what cannot be honoured is answered with HTTP 400, the rest gets its plan.

All are hooks on SGLang's main process.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from dlm_serve.config import DecodePlan, RequestOptions
from dlm_serve.engine.requests import PLAN_KEY
from dlm_serve.engine.serving import current
from dlm_serve.errors import OptionError

# SGLang keeps this many positions of the context for itself (`TpModelWorker.get_worker_info`,
# `Scheduler.init_req_max_new_tokens`) and would drop that many tokens from an answer without a word.
RESERVED_CONTEXT = 2

_SEED_STEP = 0x9E3779B97F4A7C15  # the golden ratio in 64 bits: distinct seeds for the samples of one request


# What depends on one token following another, with the values that ask for nothing.
_AUTOREGRESSIVE_ONLY: dict[str, tuple[object, ...]] = {
    "return_logprob": (None, False),
    "json_schema": (None, ""),
    "regex": (None, ""),
    "ebnf": (None, ""),
    "structural_tag": (None, ""),
    "frequency_penalty": (None, 0.0),
    "presence_penalty": (None, 0.0),
    "repetition_penalty": (None, 1.0),
    "logit_bias": (None, {}),
    "min_new_tokens": (None, 0),
    "custom_logit_processor": (None, ""),
    "return_hidden_states": (None, False),
    "watermark": (None, False),
}


def refuse_no_samples(request: Any, *_: Any, **__: Any) -> None:
    """Before `GenerateReqInput.normalize_batch_and_arguments`: `n` below 1 would hang SGLang."""
    for params in _as_list(request.sampling_params):
        _check_num_samples(params)


def contract_error(error: str | None, body: Any) -> str | None:
    """After `generate_contract_error`: what the body alone shows, before a streaming answer has begun."""
    if error is not None or not isinstance(body, dict):
        return error
    try:
        for ids in _as_list(body.get("input_ids"), of=list):
            _check_input_ids(ids, current().checkpoint.vocab_size)
        for params in _as_list(body.get("sampling_params") or {}):
            _check_num_samples(params)
            _make_plan((params.get("custom_params") or {}).get(PLAN_KEY), {**body, **params})
    except OptionError as refused:
        return str(refused)
    return None


def admit(tokenized: Any, manager: Any, request: Any, *_: Any, **__: Any) -> Any:
    """After `TokenizerManager._create_tokenized_object`: check the request and give it its plan and seed.

    Raises OptionError.
    """
    params = tokenized.sampling_params
    if not hasattr(tokenized, "return_logprob"):  # an embedding request
        return tokenized
    _check_input_ids(tokenized.input_ids, current().checkpoint.vocab_size)
    _check_length(len(tokenized.input_ids), params.max_new_tokens, manager.context_len)
    _check_unsupported(request, params)
    asked = {name: getattr(request, name, None) or getattr(params, name, None) for name in _AUTOREGRESSIVE_ONLY}
    custom = dict(params.custom_params or {})
    custom[PLAN_KEY] = _make_plan(custom.get(PLAN_KEY), asked).model_dump(mode="json")
    params.custom_params = custom
    if params.sampling_seed is None:
        params.sampling_seed = secrets.randbits(63)
    return tokenized


def give_samples_seeds(manager: Any, tokenized: Any) -> None:
    """Before `TokenizerManager._send_one_request`: each of the `n` samples of a request gets its own seed.

    SGLang sends the same parameters n times: each sample takes a copy and leaves the next seed behind.
    """
    params = tokenized.sampling_params
    if getattr(params, "n", 1) > 1:
        tokenized.sampling_params = copy.copy(params)
        params.sampling_seed = (params.sampling_seed + _SEED_STEP) % (1 << 63)


def newest_statistics(result: None, manager: Any, meta_info: dict[str, Any], *_: Any, **__: Any) -> None:
    """After `TokenizerManager.update_request_meta_info`, which collects a list: only the newest counts."""
    if meta_info.get(PLAN_KEY):
        meta_info[PLAN_KEY] = meta_info[PLAN_KEY][-1]


def greedy_by_default(given: dict[str, Any], model_config: Any) -> dict[str, Any]:
    """After `ModelConfig.get_default_sampling_params`: as the model cards, greedy unless said otherwise."""
    return {"temperature": 0.0, **given}


def _check_num_samples(params: Mapping[str, object]) -> None:
    n = params.get("n")
    if n is not None and (not isinstance(n, int) or n < 1):
        raise OptionError("n", n, "must be an integer of at least 1", "ask for one sample or more")


def _check_input_ids(input_ids: Sequence[int], vocab_size: int) -> None:
    outside = next((token_id for token_id in input_ids if not 0 <= token_id < vocab_size), None)
    if outside is not None:
        raise OptionError("input_ids", outside, f"token ids must be in [0, {vocab_size})", "use this model's tokenizer")


def _check_length(num_input: int, max_new_tokens: int | None, context_len: int) -> None:
    limit = context_len - RESERVED_CONTEXT
    if max_new_tokens is not None and num_input + max_new_tokens > limit:
        raise OptionError(
            "max_new_tokens",
            max_new_tokens,
            f"with {num_input} input tokens at most {limit - num_input} (context length {context_len})",
            "ask for fewer tokens or shorten the prompt",
        )


def _check_unsupported(request: Any, params: Any) -> None:
    if request.return_sampling_mask:
        raise OptionError("return_sampling_mask", True, "not supported for these models", "leave it out")
    if params.beam_width is not None and params.beam_width > 1:
        raise OptionError("beam_width", params.beam_width, "beam search is not supported", "leave it out")


def _make_plan(options: object, asked: Mapping[str, object]) -> DecodePlan:
    """The plan for `options` and the request's other fields. Raises OptionError."""
    needs = [name for name, nothing in _AUTOREGRESSIVE_ONLY.items() if asked.get(name) not in nothing]
    serving = current()
    return DecodePlan.resolve(RequestOptions.parse(options), serving.config, serving.checkpoint.block_size, needs)


def _as_list(value: Any, of: type = dict) -> list[Any]:
    """One value or several, as a list of those of type `of`; None is no value."""
    if value is None:
        return []
    several = isinstance(value, list) and (of is dict or any(isinstance(item, of) for item in value))
    return [item for item in (value if several else [value]) if isinstance(item, of)]
