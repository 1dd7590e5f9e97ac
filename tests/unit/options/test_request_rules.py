"""Decode plans of requests: each made once, and never a client's own."""

from __future__ import annotations

import re
from typing import Any
from unittest.mock import patch

import pytest

from dlm_serve.decoding import Mode
from dlm_serve.errors import OptionError
from dlm_serve.families import NEMOTRON_LABS_DIFFUSION
from dlm_serve.options import request_rules
from dlm_serve.options.request_rules import PLAN_KEY, RequestRules, check_sampling_params, longest_answer
from dlm_serve.options.resolve import resolve
from dlm_serve.options.server_file import ServerConfig


@pytest.fixture
def rules() -> RequestRules:
    return RequestRules(
        end_think_token_id=None,
        config=ServerConfig(),
        family=NEMOTRON_LABS_DIFFUSION,
        commit=NEMOTRON_LABS_DIFFUSION.commit,
        block_size=8,
        vocab_size=320,
        mask_token_id=100,
    )


def test_a_plan_is_made_once(rules: RequestRules) -> None:
    request = {"custom_params": {"dlm": {"mode": "diffusion", "block_length": 4}, "other": 1}, "top_k": 3}
    with patch.object(request_rules, "resolve", wraps=resolve) as resolved:
        assert rules.plan(request) is rules.plan({**request, "stream": True})
    assert resolved.call_count == 1


def test_null_is_not_absent(rules: RequestRules) -> None:
    """A threshold of null is the fixed schedule, none is the server's."""
    scheduled = rules.plan({"custom_params": {"dlm": {"mode": "diffusion", "threshold": None}}})
    default = rules.plan({"custom_params": {"dlm": {"mode": "diffusion"}}})
    assert scheduled.permitted[0].threshold is None
    assert default.permitted[0].threshold is not None


@pytest.mark.parametrize("plan", [None, "{}", {}])
def test_a_client_cannot_send_a_plan(rules: RequestRules, plan: object) -> None:
    with pytest.raises(OptionError, match=r"custom_params.dlm_plan = .*: is set by the server"):
        rules.plan({"custom_params": {PLAN_KEY: plan}})


@pytest.mark.parametrize("outside", [320, 151645, -1, 1 << 70])
@pytest.mark.parametrize("field", ["stop_token_ids", "token_ids_logprob", "logit_bias"])
def test_an_id_outside_the_vocabulary_is_named_with_its_size(rules: RequestRules, field: str, outside: int) -> None:
    """The scheduler would die of it; all ids of the vocabulary pass."""
    with pytest.raises(OptionError, match=rf"{field} = '?{outside}'?: token ids must be in \[0, 320\)"):
        rules.plan({field: listed(field, 5, outside)})
    rules.plan({field: listed(field, 0, 319)})


def listed(field: str, *ids: int) -> Any:
    """`ids` as `field` has them."""
    return {str(token_id): 1.0 for token_id in ids} if field == "logit_bias" else list(ids)


def test_a_bias_for_what_is_no_id(rules: RequestRules) -> None:
    with pytest.raises(OptionError, match="logit_bias = 'x'"):
        rules.plan({"logit_bias": {"x": 1.0}})


@pytest.mark.parametrize("pattern", ["(", "[", "a{99999999999999999999}", "(" * 5000], ids=lambda pattern: pattern[:4])
def test_a_pattern_that_does_not_compile(pattern: str) -> None:
    for stop_regex in (pattern, ["a+", pattern]):
        with pytest.raises(OptionError, match=re.escape(f"stop_regex = {pattern!r}: does not compile")):
            check_sampling_params({"stop_regex": stop_regex})
    check_sampling_params({"stop_regex": ["a+", "(b|c)$"]})


@pytest.mark.parametrize(
    ("num_input", "asked", "is_default", "found"),
    [(90, 8, False, 8), (90, 9, True, 8), (90, None, True, None), (90, 0, False, 0), (93, 5, False, 5)],
)
def test_an_answer_that_fits(num_input: int, asked: int | None, is_default: bool, found: int | None) -> None:
    assert longest_answer(asked, is_default, num_input, 98, 100) == found


@pytest.mark.parametrize(
    ("num_input", "asked", "is_default", "message"),
    [
        (90, 9, False, "max_new_tokens = 9: with 90 input tokens at most 8"),
        (93, 1 << 40, False, f"max_new_tokens = {1 << 40}: with 93 input tokens at most 5"),
        (94, 1, False, "prompt = <94 tokens>: at most 93"),
        (94, None, True, "prompt = <94 tokens>: at most 93"),
        (300, 0, False, "prompt = <300 tokens>: at most 93"),
    ],
)
@pytest.mark.parametrize(
    ("context", "why"), [(100, "context length 100"), (500, "the KV cache holds requests of 98 tokens")]
)
def test_what_does_not_fit(
    num_input: int, asked: int | None, is_default: bool, message: str, context: int, why: str
) -> None:
    """Limits are numbers of tokens that a request can have, never negative."""
    with pytest.raises(OptionError, match=re.escape(f"{message} ({why})")):
        longest_answer(asked, is_default, num_input, 98, context)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_thinking_tokens": 4}, "the tokenizer has no </think>"),
        ({"end_think_token_id": 13}, "ends no thinking without max_thinking_tokens"),
        ({"max_thinking_tokens": 4, "end_think_token_id": 320}, r"token ids must be in \[0, 320\)"),
        ({"max_thinking_tokens": -1}, "greater than or equal to 0"),
    ],
    ids=str,
)
def test_a_budget_that_cannot_be_kept(rules: RequestRules, options: dict[str, int], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        rules.plan({"custom_params": {"dlm": options}})


def test_a_budget(rules: RequestRules) -> None:
    """It is one of the rules on logits, and goes with every mode: `auto` moves between those of one answer."""
    plan = rules.plan({"custom_params": {"dlm": {"max_thinking_tokens": 4, "end_think_token_id": 13}}})
    assert (plan.logit_rules.max_thinking_tokens, plan.logit_rules.end_think_token_id) == (4, 13)
    assert {settings.mode for settings in plan.permitted} == {Mode.SELF_SPECULATION, Mode.AUTOREGRESSIVE}
