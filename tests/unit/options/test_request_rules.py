"""Decode plans of requests: each made once, and never a client's own."""

from __future__ import annotations

from unittest.mock import patch

import pytest

from dlm_serve.errors import OptionError
from dlm_serve.families import NEMOTRON_LABS_DIFFUSION
from dlm_serve.options import request_rules
from dlm_serve.options.request_rules import PLAN_KEY, RequestRules
from dlm_serve.options.resolve import resolve
from dlm_serve.options.server_file import ServerConfig


@pytest.fixture
def rules() -> RequestRules:
    return RequestRules(
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
