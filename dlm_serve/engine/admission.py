"""Requests at the door: what cannot be honoured is answered with HTTP 400, the rest gets its plan.

All are hooks on SGLang's main process.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from dlm_serve.config import DecodePlan, RequestOptions
from dlm_serve.decoding import Prefill
from dlm_serve.engine.requests import PLAN_KEY
from dlm_serve.engine.serving import current
from dlm_serve.errors import OptionError

# SGLang keeps this many positions of the context for itself (`TpModelWorker.get_worker_info`,
# `Scheduler.init_req_max_new_tokens`) and would drop that many tokens from an answer without a word.
RESERVED_CONTEXT = 2

_SEED_STEP = 0x9E3779B97F4A7C15  # the golden ratio in 64 bits: distinct seeds for the samples of one request
_TOP_K_ALL = 1 << 30  # SGLang's "whole vocabulary"; larger ones overflow its int32

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
    "watermark": (None, False),
}

# What no mode honours, with the values that ask for nothing.
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "beam_width": (None, 1),
    "input_embeds": (None,),
    "return_hidden_states": (None, False),
    "return_sampling_mask": (None, False),
    "session_params": (None,),
}


def refuse_no_samples(request: Any, *_: Any, **__: Any) -> None:
    """Before `GenerateReqInput.normalize_batch_and_arguments`: `n` below 1 would hang SGLang."""
    for params in _as_list(request.sampling_params):
        _check_num_samples(params)


def contract_error(error: str | None, body: Any) -> str | None:
    """After `generate_contract_error`: what the body alone shows, before a streaming answer has begun.

    Fields that are lists, one value for each prompt of a batch, are left to `admit`.
    """
    if error is not None or not isinstance(body, dict):
        return error
    single = {name: value for name, value in body.items() if not isinstance(value, list)}
    try:
        for ids in _as_list(body.get("input_ids"), of=list):
            _check_input_ids(ids)
            _check_prompt_length(len(ids))
        for params in _as_list(body.get("sampling_params") or {}):
            _check_num_samples(params)
            _make_plan({**single, **params})
    except OptionError as refused:
        return str(refused)
    return None


def admit(tokenized: Any, manager: Any, request: Any, *_: Any, **__: Any) -> Any:
    """After `TokenizerManager._create_tokenized_object`: check the request and give it its plan and seed.

    Raises OptionError.
    """
    if not hasattr(tokenized, "return_logprob"):  # an embedding request
        return tokenized
    params = tokenized.sampling_params
    names = [*_AUTOREGRESSIVE_ONLY, *_UNSUPPORTED, "custom_params", "top_logprobs_num", "logprob_start_len"]
    values = {name: getattr(request, name, None) or getattr(params, name, None) for name in names}
    plan = _make_plan(values)
    _check_input_ids(tokenized.input_ids)
    _check_prompt_length(len(tokenized.input_ids))
    _check_transport(params)
    params.max_new_tokens = _check_length(request, params, len(tokenized.input_ids), manager.context_len)
    params.top_k = min(params.top_k, _TOP_K_ALL)
    params.custom_params = {**(params.custom_params or {}), PLAN_KEY: plan.model_dump(mode="json")}
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


def newest_statistics(result: None, manager: Any, meta_info: dict[str, Any], state: Any, *_: Any, **__: Any) -> None:
    """After `TokenizerManager.update_request_meta_info`, which collects a list: only the newest counts."""
    collected = state.customized_info_accumulated.pop(PLAN_KEY, None)
    state.customized_info_reported_keys.discard(PLAN_KEY)
    if collected:
        meta_info[PLAN_KEY] = collected[-1]


def greedy_by_default(given: dict[str, Any], model_config: Any) -> dict[str, Any]:
    """After `ModelConfig.get_default_sampling_params`: as the model cards, which are greedy or say so."""
    return {"temperature": current().checkpoint.family.temperature, **given}


def _make_plan(values: Mapping[str, Any]) -> DecodePlan:
    """The plan of a request with these fields. Raises OptionError for those that cannot be honoured."""
    for name, nothing in _UNSUPPORTED.items():
        if values.get(name) not in nothing:
            raise OptionError(name, values[name], "not supported for these models", "leave it out")
    custom = values.get("custom_params") or {}
    if not isinstance(custom, dict):
        raise OptionError("custom_params", custom, "must be a mapping", "give options by name")
    _check_logprobs(values)
    needs = [name for name, nothing in _AUTOREGRESSIVE_ONLY.items() if values.get(name) not in nothing]
    serving = current()
    options = RequestOptions.parse(custom.get(PLAN_KEY))
    checkpoint = serving.checkpoint
    return DecodePlan.resolve(options, serving.config, checkpoint.family, checkpoint.block_size, needs)


def _check_num_samples(params: Mapping[str, object]) -> None:
    n = params.get("n")
    if n is not None and (not isinstance(n, int) or n < 1):
        raise OptionError("n", n, "must be an integer of at least 1", "ask for one sample or more")


def _check_input_ids(input_ids: Sequence[int]) -> None:
    vocab_size = current().checkpoint.vocab_size
    outside = next((token_id for token_id in input_ids if not 0 <= token_id < vocab_size), None)
    if outside is not None:
        raise OptionError("input_ids", outside, f"token ids must be in [0, {vocab_size})", "use this model's tokenizer")


def _check_logprobs(values: Mapping[str, Any]) -> None:
    """SGLang's scheduler takes these numbers as they are, and dies of wrong ones."""
    number, start = values.get("top_logprobs_num"), values.get("logprob_start_len")
    vocab_size = current().checkpoint.vocab_size
    if isinstance(number, int) and not 0 <= number <= vocab_size:
        raise OptionError("top_logprobs_num", number, f"must be in [0, {vocab_size}]", "ask for fewer")
    if isinstance(start, int) and start < -1:
        raise OptionError("logprob_start_len", start, "must be at least -1", "give a position of the prompt")


def _check_transport(params: Any) -> None:
    """The scheduler decodes parameters more strictly than they were parsed, and dies of what it refuses."""
    try:
        msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=type(params))
    except (msgspec.ValidationError, TypeError, OverflowError) as error:
        raise OptionError(
            "sampling_params", "<as sent>", f"cannot be passed on ({error})", "use plain values, nested at most once"
        ) from error


def _check_prompt_length(num_input: int) -> None:
    """Where all tokens of a prompt see each other, it is encoded in one forward."""
    from sglang.srt.runtime_context import get_schedule

    most = get_schedule().max_prefill_tokens
    if current().policy.prefill is Prefill.BIDIRECTIONAL and num_input > most:
        raise OptionError(
            "prompt",
            f"{num_input} tokens",
            f"at most {most}, --max-prefill-tokens: prompts of {current().checkpoint.family.name} are encoded at once",
            "shorten the prompt or start the server with more",
        )


def _check_length(request: Any, params: Any, num_input: int, context_len: int) -> int | None:
    """The request's `max_new_tokens`, which must fit behind its prompt; where none was asked for, what fits."""
    most = context_len - RESERVED_CONTEXT - num_input
    if params.max_new_tokens is None or params.max_new_tokens <= most:
        return params.max_new_tokens  # type: ignore[no-any-return]  # SGLang's field is an int
    if request.sampling_params.get("max_new_tokens") is None and most > 0:
        return most
    raise OptionError(
        "max_new_tokens",
        params.max_new_tokens,
        f"with {num_input} input tokens at most {most} (context length {context_len})",
        "ask for fewer tokens or shorten the prompt",
    )


def _as_list(value: Any, of: type = dict) -> list[Any]:
    """One value or several, as a list of those of type `of`; None is no value."""
    if value is None:
        return []
    several = isinstance(value, list) and (of is dict or any(isinstance(item, of) for item in value))
    return [item for item in (value if several else [value]) if isinstance(item, of)]
