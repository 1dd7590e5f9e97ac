"""What requests may say about how self-speculation drafts and verifies."""

from __future__ import annotations

from typing import Any

import pytest

from dlm_serve.decoding import ModeSettings
from dlm_serve.errors import OptionError
from dlm_serve.families import EFFICIENT_DLM, NEMOTRON_LABS_DIFFUSION, Family
from dlm_serve.options.request import RequestOptions
from dlm_serve.options.resolve import resolve
from dlm_serve.options.server_file import ServerConfig

ONE_FORWARD = {"mode": "self_speculation", "speculation": "one_forward"}


def settings_of(options: dict[str, Any], generation: dict[str, Any] | None = None) -> ModeSettings:
    """The settings with which a request starts."""
    config = ServerConfig.model_validate({"generation": generation or {}})
    return resolve(RequestOptions.parse(options), config, NEMOTRON_LABS_DIFFUSION, 32, ()).permitted[0]


@pytest.mark.parametrize(
    ("options", "field", "says"),
    [
        ({"mode": "diffusion", "speculation": "linear"}, "speculation", "only mode self_speculation"),
        ({"mode": "self_speculation", "budget": 32}, "budget", "only speculation one_forward"),
        ({**ONE_FORWARD, "threshold": 0.5}, "threshold", "all masks at once"),
        ({**ONE_FORWARD, "threshold": None}, "threshold", "all masks at once"),
        ({**ONE_FORWARD, "steps": 4}, "steps", "all masks at once"),
        ({**ONE_FORWARD, "convergence_threshold": 0.1}, "convergence_threshold", "all masks at once"),
        ({**ONE_FORWARD, "budget": 500}, "budget", "less than or equal"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(OptionError, match=says) as refusal:
        settings_of(options)
    assert refusal.value.field == f"custom_params.dlm.{field}"


@pytest.mark.parametrize(
    ("family", "remedy"), [(NEMOTRON_LABS_DIFFUSION, "leave it out, or use that mode"), (EFFICIENT_DLM, "leave it out")]
)
def test_a_refusal_says_what_was_written_and_only_what_can_be_done(family: Family, remedy: str) -> None:
    options = RequestOptions.parse({"mode": "diffusion", "speculation": "one_forward"})
    with pytest.raises(OptionError) as refusal:
        resolve(options, ServerConfig(), family, 32, ())
    written = "custom_params.dlm.speculation = 'one_forward'"
    assert str(refusal.value) == f"{written}: only mode self_speculation has it; {remedy}."


def test_one_forward_drafts_at_once_whatever_drafts_in_turn_do() -> None:
    of_server = {"draft_threshold": 0.5, "budget": 48}
    settings = settings_of(ONE_FORWARD, of_server)
    assert (settings.budget, settings.threshold) == (48, 0.0)
    assert settings_of({**ONE_FORWARD, "threshold": 0.0}, of_server).budget == 48
    assert settings_of({"mode": "self_speculation"}, of_server).threshold == 0.5
