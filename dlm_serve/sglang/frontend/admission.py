"""Admission, in the main process: refuse what cannot be honoured with HTTP 400, and plan the rest."""

from __future__ import annotations

import copy
import math
import re
import secrets
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from fastapi import BackgroundTasks
from sglang.srt.managers.io_struct import msgpack_decode, msgpack_encode
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from sglang.srt.sampling.sampling_params import SamplingParams
from transformers import GenerationConfig

from dlm_serve import bundled
from dlm_serve.decoding import LogitRules, StopRule
from dlm_serve.errors import OptionError
from dlm_serve.models.checkpoint import Checkpoint
from dlm_serve.options.request_rules import (
    BEYOND_PROMPT,
    FIELDS,
    PLAN,
    PLAN_KEY,
    check_sampling_params,
    longest_answer,
)
from dlm_serve.options.written import as_written
from dlm_serve.sglang.frontend.bodies import said, with_said
from dlm_serve.sglang.frontend.refusals import unreadable_is_refused
from dlm_serve.sglang.protocols import (
    GenerateRequestLike,
    SamplingParamsLike,
    TokenizedRequestLike,
)
from dlm_serve.sglang.serving import STATISTICS_KEY, Serving, current

_SEED_STEP = 0x9E3779B97F4A7C15  # the golden ratio in 64 bits: distinct seeds for the samples of one request
_INT64 = 1 << 63
_LONGEST = (1 << 31) - 1  # longer than any answer
_MOST_BIAS = 1e38
_TOP_K_ALL = 1 << 30  # SGLang's "whole vocabulary"; larger ones overflow its int32

_POSITION = re.compile(r"`\$\[(\d+)\]")  # of a wrong value among a message's fields, behind its type

# How tokens are drawn: SGLang's own defaults for these stand only where neither request nor checkpoint says.
_DRAWING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class DlmTokenizerManager(TokenizerManager):  # type: ignore[misc]  # the base is untyped
    """SGLang's tokenizer manager, through which every request enters and every answer leaves."""

    context_len: int
    max_req_input_len: int
    preferred_sampling_params: dict[str, Any]
    model_path: str
    served_model_name: str

    def init_model_config(self) -> None:
        """Let chats decode as other requests do where they say nothing: see `defaults.prepare_server_args`."""
        super().init_model_config()
        self.serving: Serving = current()  # another engine in this process may load another model later
        self._started_with = self.model_path
        config = self.model_config
        generation = copy.copy(config.hf_generation_config) or GenerationConfig()
        for name in _DRAWING:
            setattr(generation, name, self.preferred_sampling_params.get(name))
        config.hf_generation_config, config.sampling_defaults = generation, "model"

    def generate_request(self, obj: Any, request: Any = None) -> Any:
        """Add what the request's body said, and refuse parameters that SGLang would answer with HTTP 500."""
        if said().custom_params:
            several = isinstance(obj.sampling_params, list)
            params = [with_said(one) for one in obj.sampling_params] if several else with_said(obj.sampling_params)
            obj.sampling_params = params
        for params in _as_list(obj.sampling_params):
            check_sampling_params(params)
        return super().generate_request(obj, request)

    async def update_weights_from_disk(self, obj: Any, request: Any = None) -> Any:
        """Let the weights with which the server started be named as it is, and the bundled model's as at a start."""
        is_served = obj.model_path == self.served_model_name
        obj.model_path = self._started_with if is_served else bundled.expand(obj.model_path)
        return await super().update_weights_from_disk(obj, request)

    def _update_model_path_info(self, model_path: str, load_format: str) -> None:
        """Note where the weights are from; the model keeps its name, by which clients ask for it."""
        served = self.served_model_name
        super()._update_model_path_info(model_path, load_format)
        self.served_model_name = served

    def create_abort_task(self, obj: Any) -> BackgroundTasks:
        """Return nothing to do when a stream has ended: SGLang would abort two seconds later, `Bodies` has done so."""
        return BackgroundTasks()

    def abort_unfinished(self, begun: Mapping[str, Any]) -> None:
        """Abort those requests, with their states by id, that go on although nobody waits for them."""
        for rid, state in begun.items():
            if self.rid_to_state.get(rid) is state and not getattr(state.obj, "background", False):
                self.abort_request(rid)

    def _init_req_state(self, obj: Any, request: Any = None) -> None:
        with unreadable_is_refused():
            super()._init_req_state(obj, request)
        for rid in obj.rid if isinstance(obj.rid, list) else [obj.rid]:
            said().begun[rid] = self.rid_to_state[rid]

    async def _tokenize_one_request(self, obj: Any) -> Any:
        try:
            with unreadable_is_refused():
                return await super()._tokenize_one_request(obj)
        except ValueError as refusal:
            said().refusal = str(refusal)
            raise

    def _create_tokenized_object(self, obj: Any, input_text: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        tokenized = super()._create_tokenized_object(obj, input_text, input_ids, *args, **kwargs)
        if hasattr(tokenized, "return_logprob"):  # not an embedding request
            _admit(tokenized, self, obj)
        return tokenized

    async def _send_one_request(self, tokenized_obj: Any) -> None:
        """Give each of the `n` samples of a request its own seed.

        SGLang sends the same parameters n times: each sample takes a copy and leaves the next seed behind.
        """
        params = tokenized_obj.sampling_params
        if getattr(params, "n", 1) > 1:
            tokenized_obj.sampling_params = copy.copy(params)
            params.sampling_seed = (params.sampling_seed + _SEED_STEP) % _INT64
        said().is_admitted = True
        await super()._send_one_request(tokenized_obj)

    def update_request_meta_info(
        self, meta_info: dict[str, Any], state: Any, customized_info: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Report the newest statistics; SGLang collects a list, one for each chunk."""
        super().update_request_meta_info(meta_info, state, customized_info, *args, **kwargs)
        collected = state.customized_info_accumulated.pop(STATISTICS_KEY, None)
        state.customized_info_reported_keys.discard(STATISTICS_KEY)
        if collected:
            meta_info[STATISTICS_KEY] = collected[-1]


def contract_error(error: str | None, body: Any) -> str | None:
    """After `generate_contract_error`: refuse what the body alone shows, before a streaming answer has begun.

    Fields that are lists, one value for each prompt of a batch, are left to admission. Returns the reason, or None.
    """
    if error is not None or not isinstance(body, dict):
        return error
    single = {name: value for name, value in body.items() if not isinstance(value, list)}
    rules = current().request_rules
    try:
        for ids in _as_list(body.get("input_ids"), of=list):
            rules.check_input_ids(ids)
            rules.check_prompt_length(len(ids), _max_prefill_tokens())
        for params in _as_list(body.get("sampling_params") or {}):
            check_sampling_params(params)
            rules.plan({**single, **with_said(params)})
            SamplingParams(**params).verify(rules.vocab_size)
        for ids in _as_list(body.get("token_ids_logprob"), of=list):
            rules.check_token_ids("token_ids_logprob", ids)
    except ValueError as refused:
        return str(refused)
    return None


def converted_chat(original: Any, serving: Any, request: Any, raw_request: Any = None) -> Any:
    """Around `OpenAIServingChat._convert_to_internal_request`: refuse a chat that cannot be put into tokens.

    Where thinking is to be told from the answer, the token between them stays in the text although it is a special one.
    """
    if serving._get_reasoning_from_request(request) and _is_end_of_thinking_lost(serving):
        request.skip_special_tokens = False
    with unreadable_is_refused():
        return original(serving, request, raw_request)


def _is_end_of_thinking_lost(serving: Any) -> bool:
    """Return whether texts are without the token between thinking and answer, where special tokens are left out."""
    tokenizer, detector = serving.tokenizer_manager.tokenizer, serving._reasoning_detector
    if detector is None:
        return False
    end = tokenizer.encode(detector.think_end_token, add_special_tokens=False)
    return not tokenizer.decode(end, skip_special_tokens=True)


def as_the_model_says(params: dict[str, Any], serving: Any, request: Any) -> dict[str, Any]:
    """After `OpenAIServingCompletion._build_sampling_params`: leave to the model what the request leaves out."""
    return {name: value for name, value in params.items() if name not in _DRAWING or name in request.model_fields_set}


def _admit(tokenized: TokenizedRequestLike, manager: DlmTokenizerManager, request: GenerateRequestLike) -> None:
    """Check a tokenized request, and give it its plan, a seed and a length that fits. Raises OptionError."""
    params, rules = tokenized.sampling_params, manager.serving.request_rules
    plan = rules.plan({name: _asked(name, request, params) for name in FIELDS}, said().fields)
    if request.text is not None:
        tokenized.input_ids = _begun(tokenized.input_ids, manager.serving.checkpoint)
    num_input = len(tokenized.input_ids)
    rules.check_input_ids(tokenized.input_ids)
    rules.check_prompt_length(num_input, _max_prefill_tokens())
    _check_transport(tokenized)
    params.max_new_tokens = longest_answer(
        params.max_new_tokens,
        request.sampling_params.get("max_new_tokens") is None,
        num_input,
        manager.max_req_input_len + BEYOND_PROMPT,
        manager.context_len,
        field=as_written("max_new_tokens", said().fields),
    )
    params.top_k = min(params.top_k, _TOP_K_ALL)
    plan = replace(plan, logit_rules=_take_rules(params, plan.logit_rules))
    params.custom_params = {**(params.custom_params or {}), PLAN_KEY: PLAN.dump_json(plan).decode()}
    params.ignore_eos = params.ignore_eos or plan.stop_rule is StopRule.UPSTREAM
    if params.sampling_seed is None:
        params.sampling_seed = secrets.randbits(63)


def _take_rules(params: SamplingParamsLike, rules: LogitRules) -> LogitRules:
    """Return `rules` with what else a request changes about its logits, and leave nothing of that to SGLang.

    Its penalties lag a step.
    """
    rules = replace(
        rules,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        repetition_penalty=params.repetition_penalty,
        min_new_tokens=min(params.min_new_tokens, _LONGEST),
        logit_bias=tuple((int(token_id), _as_float32(bias)) for token_id, bias in (params.logit_bias or {}).items()),
    )
    params.frequency_penalty = params.presence_penalty = 0.0
    params.repetition_penalty, params.min_new_tokens, params.logit_bias = 1.0, 0, None
    return rules


def _as_float32(bias: float) -> float:
    """Return a bias within what a float32 holds. Raises OptionError for one that is no number."""
    if math.isnan(bias):
        raise OptionError("logit_bias", bias, "must be a number", "give one, -100 to rule a token out")
    return max(-_MOST_BIAS, min(bias, _MOST_BIAS))


def _asked(name: str, request: GenerateRequestLike, params: SamplingParamsLike) -> Any:
    """Return the request's field or, where it has none, the parameter of that name."""
    value = getattr(request, name, None)
    return getattr(params, name, None) if value is None else value


def _begun(input_ids: Sequence[int], checkpoint: Checkpoint) -> Sequence[int]:
    """Return the tokens of a text, behind the one that begins every sequence where the family has it."""
    if not checkpoint.family.begins_with_eos or list(input_ids[:1]) == checkpoint.eos_token_ids:
        return input_ids
    return array("q", [*checkpoint.eos_token_ids, *input_ids])


def _check_transport(tokenized: Any) -> None:
    """Refuse values of other types than the scheduler's process expects: it would die of them."""
    sent = msgspec.structs.replace(tokenized, input_ids=None, time_stats=None)  # neither is the client's
    try:
        msgpack_decode(msgpack_encode(sent))
    except (msgspec.ValidationError, TypeError, OverflowError, UnicodeError) as error:
        found = _POSITION.search(str(error))
        field = "request" if found is None else msgspec.structs.fields(sent)[int(found[1]) - 1].name
        raise OptionError(
            field, "<as sent>", f"cannot be serialised ({error})", "use plain values, nested at most once"
        ) from error


def _max_prefill_tokens() -> int:
    from sglang.srt.runtime_context import get_schedule

    return int(get_schedule().max_prefill_tokens)


def _as_list(value: Any, of: type = dict) -> list[Any]:
    """Return one value or several as a list of those of type `of`; None is no value."""
    if value is None:
        return []
    several = isinstance(value, list) and (of is dict or any(isinstance(item, of) for item in value))
    return [item for item in (value if several else [value]) if isinstance(item, of)]
