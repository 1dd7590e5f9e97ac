"""Admission, where requests enter vLLM: refuse what cannot be honoured with HTTP 400, and plan the rest."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from dlm_serve.decoding import DecodePlan, Mode, ModeSettings
from dlm_serve.errors import OptionError
from dlm_serve.families import NEMOTRON_LABS_DIFFUSION
from dlm_serve.options.needs import Need
from dlm_serve.options.request import OPTIONS_FIELD, RequestOptions
from dlm_serve.options.resolve import resolve
from dlm_serve.vllm.request import with_settings
from dlm_serve.vllm.serving import Serving, serving_of

XARGS = "vllm_xargs"
"""The field of a request that carries its options; offline it is `SamplingParams.extra_args`."""

_ONE_AT_A_TIME: dict[str, tuple[object, ...]] = {
    "logprobs": (None,),
    "logprob_token_ids": (None, []),
    "structured_outputs": (None,),
    "frequency_penalty": (0.0,),
    "presence_penalty": (0.0,),
    "repetition_penalty": (1.0,),
    "logit_bias": (None, {}),
    "min_tokens": (0,),
    "bad_words": (None, []),
    "allowed_token_ids": (None, []),
    "thinking_token_budget": (None,),
}
"""vLLM's parameters that its sampler honours for rows of one token, with the values that ask for nothing."""

_ONLY_ON_SGLANG = ("speculation", "budget", "history", "max_thinking_tokens", "end_think_token_id")
"""Options that this adapter does not have."""


def process_inputs(
    original: Callable[..., Any], processor: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
) -> Any:
    """Around `InputProcessor.process_inputs`: give a request of our model how it decodes, and a seed.

    Returns vLLM's EngineCoreRequest, whose parameters are its own copy. Raises VLLMValidationError with
    the words of our OptionError: of errors in this place vLLM answers that one alone with HTTP 400.
    """
    from vllm.exceptions import VLLMValidationError

    request = original(processor, request_id, prompt, params, *args, **kwargs)
    model_config = processor.vllm_config.model_config
    if model_config.architecture == NEMOTRON_LABS_DIFFUSION.architecture and request.sampling_params is not None:
        try:
            admit(request.sampling_params, len(request.prompt_token_ids), model_config.max_model_len, model_config)
        except OptionError as refusal:
            raise VLLMValidationError(str(refusal)) from refusal
    return request


def admit(params: Any, num_prompt: int, longest: int, model_config: Any) -> None:
    """Check and complete vLLM's SamplingParams of a request of `num_prompt` tokens, in place. Raises OptionError."""
    serving = serving_of(model_config)
    settings = plan(params.extra_args or {}, params, serving).permitted[0]
    params.max_tokens = _length_that_fits(params.max_tokens, num_prompt, longest, settings)
    if params.seed is None:
        params.seed = secrets.randbits(63)
    params.extra_args = with_settings(settings)


def admitted_warm_up(params: Any, serving: Serving) -> Any:
    """Return the SamplingParams of one of vLLM's own requests, which warm up a model runner and were not admitted.

    They draft, so that rows are as wide as vLLM takes them to be.
    """
    warm_up = params.clone()
    settings = plan({"mode": Mode.SELF_SPECULATION.value}, type(params)(), serving).permitted[0]
    warm_up.extra_args, warm_up.seed = with_settings(settings), params.seed or 0
    return warm_up


def plan(raw: Mapping[str, object], params: Any, serving: Serving) -> DecodePlan:
    """Return the plan of a request with the options `raw`, which permits one mode. Raises OptionError."""
    needs = [Need(name, name, True) for name, nothing in _ONE_AT_A_TIME.items() if getattr(params, name) not in nothing]
    checkpoint = serving.checkpoint
    try:
        options = RequestOptions.parse(dict(raw))
        for name in sorted(options.model_fields_set.intersection(_ONLY_ON_SGLANG)):
            raise OptionError(f"{OPTIONS_FIELD}.{name}", raw[name], "not supported on vLLM", "leave it out")
        return resolve(options, serving.config, checkpoint.family, checkpoint.block_size, needs)
    except OptionError as refusal:
        field = refusal.field.replace(OPTIONS_FIELD, XARGS)
        raise OptionError(field, refusal.value, refusal.limit, refusal.remedy) from None


def _length_that_fits(asked: int, num_prompt: int, longest: int, settings: ModeSettings) -> int:
    """Return the `max_tokens` of a request, whose last block must fit into `longest` tokens as a whole.

    vLLM's default is all that is left behind the prompt; that gives way to what fits. Raises OptionError.
    """
    most = longest - num_prompt - (settings.block_length - 1)
    if asked <= most:
        return asked
    if asked == longest - num_prompt and most > 0:
        return most
    why = f"context length {longest}, less the {settings.block_length - 1} further tokens of a block"
    limit = f"with {num_prompt} input tokens at most {max(most, 0)} ({why})"
    raise OptionError("max_tokens", asked, limit, "ask for fewer tokens, or shorten the prompt or the blocks")
