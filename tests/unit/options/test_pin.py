"""What an operator may ask of the router, and why not else."""

from __future__ import annotations

from typing import Any

import pytest

from dlm_serve.decoding import AUTOREGRESSIVELY, Choice, Mode
from dlm_serve.errors import OptionError
from dlm_serve.options.fields import validate
from dlm_serve.options.pin import Pin

CHOICES: tuple[Choice, ...] = (Choice(Mode.SELF_SPECULATION, 8), Choice(Mode.SELF_SPECULATION, 4))


def pinned(body: dict[str, Any], choices: tuple[Choice, ...] = CHOICES) -> Choice | None:
    return validate(Pin, body, OptionError, "body").choice(choices)


@pytest.mark.parametrize(
    ("body", "choice"),
    [
        ({"mode": "auto"}, None),
        ({"mode": "autoregressive"}, AUTOREGRESSIVELY),
        ({"mode": "self_speculation"}, Choice(Mode.SELF_SPECULATION, 8)),
        ({"mode": "self_speculation", "block_length": 4}, Choice(Mode.SELF_SPECULATION, 4)),
    ],
)
def test_what_is_pinned(body: dict[str, Any], choice: Choice | None) -> None:
    assert pinned(body) == choice


@pytest.mark.parametrize(
    ("body", "choices", "words"),
    [
        ({}, CHOICES, "field required"),
        ({"mode": "fast"}, CHOICES, "'autoregressive'"),
        ({"mode": "auto", "block": 4}, CHOICES, "did you mean 'block_length'"),
        ({"mode": "auto", "block_length": 4}, CHOICES, "mode auto has no blocks"),
        ({"mode": "self_speculation", "block_length": 16}, CHOICES, "requests with mode auto have 4, 8"),
        ({"mode": "diffusion"}, CHOICES, "have auto, autoregressive, self_speculation; use one of these, or set"),
        ({"mode": "auto"}, (), "requests are not moved"),
    ],
)
def test_what_is_refused(body: dict[str, Any], choices: tuple[Choice, ...], words: str) -> None:
    with pytest.raises(OptionError) as refused:
        pinned(body, choices)
    assert words in str(refused.value)
