"""Requests at the door: what cannot be honoured is answered with HTTP 400, the rest gets its plan.

All are hooks on SGLang's main process.
"""

from __future__ import annotations

import copy
import secrets
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from dlm_serve.decoding import Prefill, StopRule
from dlm_serve.engine.requests import PLAN_KEY
from dlm_serve.engine.serving import current
from dlm_serve.errors import OptionError
from dlm_serve.plan import DecodePlan, RequestOptions

# SGLang keeps this many positions of the context for itself (`TpModelWorker.get_worker_info`,
# `Scheduler.init_req_max_new_tokens`) and would drop that many tokens from an answer without a word.
RESERVED_CONTEXT = 2
# A request may be this much longer than a prompt (in the same places).
BEYOND_PROMPT = 4

_SEED_STEP = 0x9E3779B97F4A7C15  # the golden ratio in 64 bits: distinct seeds for the samples of one request
_INT64 = 1 << 63
_TOP_K_ALL = 1 << 30  # SGLang's "whole vocabulary"; larger ones overflow its int32

# How tokens are drawn: SGLang's own defaults for these stand only where neither request nor checkpoint says.
_DRAWING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

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


# What cannot go with a rule that looks at whole blocks and may take back tokens, with the values that ask for nothing.
_NOT_WITH_UPSTREAM_STOPS: dict[str, tuple[object, ...]] = {
    "ignore_eos": (None, False),
    "stop_token_ids": (None, []),
    "stream": (None, False),
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
        if body.get("custom_params") is not None:
            raise OptionError("custom_params", body["custom_params"], "belongs into sampling_params", "move it there")
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
    names = [
        *_AUTOREGRESSIVE_ONLY,
        *_UNSUPPORTED,
        *_NOT_WITH_UPSTREAM_STOPS,
        "custom_params",
        "top_logprobs_num",
        "logprob_start_len",
    ]
    values = {name: _asked(name, request, params) for name in names}
    plan = _make_plan(values)
    if request.text is not None:
        tokenized.input_ids = _begun(tokenized.input_ids)
    _check_input_ids(tokenized.input_ids)
    _check_prompt_length(len(tokenized.input_ids))
    _check_transport(params)
    params.max_new_tokens = _check_length(request, params, len(tokenized.input_ids), manager)
    params.top_k = min(params.top_k, _TOP_K_ALL)
    params.custom_params = {**(params.custom_params or {}), PLAN_KEY: plan.model_dump(mode="json")}
    params.ignore_eos = params.ignore_eos or plan.stop_rule is StopRule.UPSTREAM
    if params.sampling_seed is None:
        params.sampling_seed = secrets.randbits(63)
    return tokenized


def _asked(name: str, request: Any, params: Any) -> Any:
    """The request's field or, where it has none, the parameter of that name."""
    value = getattr(request, name, None)
    return getattr(params, name, None) if value is None else value


def give_samples_seeds(manager: Any, tokenized: Any) -> None:
    """Before `TokenizerManager._send_one_request`: each of the `n` samples of a request gets its own seed.

    SGLang sends the same parameters n times: each sample takes a copy and leaves the next seed behind.
    """
    params = tokenized.sampling_params
    if getattr(params, "n", 1) > 1:
        tokenized.sampling_params = copy.copy(params)
        params.sampling_seed = (params.sampling_seed + _SEED_STEP) % _INT64


def newest_statistics(result: None, manager: Any, meta_info: dict[str, Any], state: Any, *_: Any, **__: Any) -> None:
    """After `TokenizerManager.update_request_meta_info`, which collects a list: only the newest counts."""
    collected = state.customized_info_accumulated.pop(PLAN_KEY, None)
    state.customized_info_reported_keys.discard(PLAN_KEY)
    if collected:
        meta_info[PLAN_KEY] = collected[-1]


def as_the_model_says(params: dict[str, Any], serving: Any, request: Any) -> dict[str, Any]:
    """After `OpenAIServingCompletion._build_sampling_params`: what a request leaves out is the model's to say."""
    return {name: value for name, value in params.items() if name not in _DRAWING or name in request.model_fields_set}


def greedy_by_default(given: dict[str, Any], model_config: Any) -> dict[str, Any]:
    """After `ModelConfig.get_default_sampling_params`: as the model cards, which are greedy or say so.

    See `Checkpoint.generation_defaults` about penalties.
    """
    defaults = {"temperature": current().checkpoint.family.temperature, **given}
    return {name: value for name, value in defaults.items() if name != "repetition_penalty"}


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
    plan = DecodePlan.resolve(options, serving.config, checkpoint.family, checkpoint.block_size, needs)
    if plan.stop_rule is StopRule.UPSTREAM:
        _check_upstream_stops(values)
    return plan


def _check_upstream_stops(values: Mapping[str, Any]) -> None:
    for name, nothing in _NOT_WITH_UPSTREAM_STOPS.items():
        value = values.get(name)
        if (sorted(value) if isinstance(value, set) else value) not in nothing:
            raise OptionError(
                name,
                value,
                "stop_rule upstream decides alone where an answer ends, when its blocks are there",
                "leave it out, or use stop_rule eos",
            )


def _check_num_samples(params: Mapping[str, object]) -> None:
    n = params.get("n", 1)
    if not isinstance(n, int) or n < 1:
        raise OptionError("n", n, "must be an integer of at least 1", "ask for one sample or more")


def _check_input_ids(input_ids: Sequence[int]) -> None:
    if not len(input_ids):
        raise OptionError("prompt", "", "has no tokens", "give at least one")
    vocab_size = current().checkpoint.vocab_size
    outside = next((token_id for token_id in input_ids if not 0 <= token_id < vocab_size), None)
    if outside is not None:
        raise OptionError("input_ids", outside, f"token ids must be in [0, {vocab_size})", "use this model's tokenizer")
    mask = current().checkpoint.mask_token_id
    if current().policy.is_anchored and mask in input_ids:
        raise OptionError("input_ids", mask, "is the mask, which the first block would fill", "leave it out")


def _begun(input_ids: Sequence[int]) -> Sequence[int]:
    """The tokens of a text, behind the one that begins every sequence where the family has it."""
    checkpoint = current().checkpoint
    if not checkpoint.family.begins_with_eos or list(input_ids[:1]) == checkpoint.eos_token_ids:
        return input_ids
    return array("q", [*checkpoint.eos_token_ids, *input_ids])


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
    for token_id in params.stop_token_ids or ():
        if not -_INT64 <= token_id < _INT64:
            raise OptionError("stop_token_ids", token_id, "must fit into 64 bits", "give ids of the vocabulary")


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


def _check_length(request: Any, params: Any, num_input: int, manager: Any) -> int | None:
    """The request's `max_new_tokens`, which must fit behind its prompt; where none was asked for, what fits."""
    longest: int = manager.max_req_input_len + BEYOND_PROMPT
    asked: int | None = params.max_new_tokens
    most = longest - num_input
    if asked is None or asked <= most:
        return asked
    if request.sampling_params.get("max_new_tokens") is None and most > 0:
        return most
    is_whole = longest >= manager.context_len - RESERVED_CONTEXT
    limit = f"context length {manager.context_len}" if is_whole else f"the KV cache holds requests of {longest} tokens"
    raise OptionError(
        "max_new_tokens",
        asked,
        f"with {num_input} input tokens at most {most} ({limit})",
        "ask for fewer tokens or shorten the prompt",
    )


def _as_list(value: Any, of: type = dict) -> list[Any]:
    """One value or several, as a list of those of type `of`; None is no value."""
    if value is None:
        return []
    several = isinstance(value, list) and (of is dict or any(isinstance(item, of) for item in value))
    return [item for item in (value if several else [value]) if isinstance(item, of)]
