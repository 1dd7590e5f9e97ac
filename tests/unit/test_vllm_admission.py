"""Which plan a request on vLLM gets, and how it is refused; vLLM itself is not needed for that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from golden import TRAINED

from dlm_serve.decoding import Mode
from dlm_serve.errors import OptionError
from dlm_serve.vllm import admission
from dlm_serve.vllm.request import settings_of

MODEL = SimpleNamespace(model=str(TRAINED), revision=None)
ASKS_NOTHING: dict[str, Any] = {
    "logprobs": None,
    "logprob_token_ids": None,
    "structured_outputs": None,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logit_bias": None,
    "min_tokens": 0,
    "bad_words": [],
    "allowed_token_ids": None,
    "thinking_token_budget": None,
}


def admitted(options: dict[str, Any], num_prompt: int = 8, longest: int = 512, **params: Any) -> Any:
    """Return the parameters of a request that vLLM gave a length, as admission leaves them."""
    found = SimpleNamespace(
        **{**ASKS_NOTHING, "seed": None, "max_tokens": longest - num_prompt, "extra_args": options, **params}
    )
    admission.admit(found, num_prompt, longest, MODEL)
    return found


@pytest.mark.parametrize(
    ("options", "params", "mode"),
    [
        ({}, {}, Mode.SELF_SPECULATION),
        ({"mode": "auto"}, {"logprobs": 0}, Mode.AUTOREGRESSIVE),
        ({}, {"presence_penalty": 0.5}, Mode.AUTOREGRESSIVE),
        ({"steps": 4}, {}, Mode.DIFFUSION),
        ({"mode": "diffusion"}, {}, Mode.DIFFUSION),
    ],
)
def test_mode(options: dict[str, Any], params: dict[str, Any], mode: Mode) -> None:
    """As on SGLang without a router, but that only autoregression has what vLLM's sampler does to logits."""
    assert settings_of(admitted(options, **params)).mode is mode


@pytest.mark.parametrize(
    ("options", "params", "field"),
    [
        ({"mode": "diffusion"}, {"logprobs": 0}, "vllm_xargs.mode"),
        ({"mode": "self_speculation"}, {"logit_bias": {1: 1.0}}, "vllm_xargs.mode"),
        ({"threshhold": 0.5}, {}, "vllm_xargs.threshhold"),
        ({"budget": 16}, {}, "vllm_xargs.budget"),
        ({"history": True}, {}, "vllm_xargs.history"),
        ({}, {"max_tokens": 498}, "max_tokens"),
    ],
)
def test_refused(options: dict[str, Any], params: dict[str, Any], field: str) -> None:
    with pytest.raises(OptionError) as refusal:
        admitted(options, **params)
    assert refusal.value.field == field


@pytest.mark.parametrize(("mode", "most"), [("autoregressive", 504), ("self_speculation", 497)])
def test_a_length_left_open_is_what_fits_with_whole_blocks(mode: str, most: int) -> None:
    assert admitted({"mode": mode}).max_tokens == most


def test_a_request_without_a_seed_gets_one_of_its_own() -> None:
    assert admitted({}, seed=7).seed == 7
    assert admitted({}).seed != admitted({}).seed
