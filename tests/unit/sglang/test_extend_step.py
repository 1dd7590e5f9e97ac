"""An EXTEND call runs the prompt's forward and no other; blocks that it does not begin are left to decode steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from processes import output_of

SCRIPT = Path(__file__).parent / "extend_calls.py"
M = 1
"""The mask."""

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the prefill begins the block": (
        {"family": "nemotron-labs-diffusion"},
        {"token": 50, "row": [50, M, M, M], "start": 6},
    ),
    "it is resumed, and its pending token begins it": (
        {"family": "nemotron-labs-diffusion", "num_output": 5},
        {"token": None, "row": [204, M, M, M], "start": 10},
    ),
    "autoregressive, resumed": (
        {"family": "nemotron-labs-diffusion", "mode": "autoregressive", "num_output": 5},
        {"token": 50, "row": [50], "start": 11},
    ),
    "masks begin it": ({"family": "efficient-dlm"}, {"token": None, "row": [M, M, M, M], "start": 6}),
    "masks begin the next": (
        {"family": "efficient-dlm", "num_output": 4},
        {"token": None, "row": [M, M, M, M], "start": 10},
    ),
    "the end of the prompt begins it": ({"family": "bd3lm"}, {"token": None, "row": [104, 105, M, M], "start": 4}),
    "SDAR": ({"family": "sdar", "num_output": 2}, {"token": None, "row": [M, M, M, M], "start": 8}),
    "the anchor begins a window": ({"family": "sdlm"}, {"token": None, "row": [105, M, M, M], "start": 5}),
    "SDLM, autoregressive": (
        {"family": "sdlm", "mode": "autoregressive"},
        {"token": 50, "row": [50], "start": 6},
    ),
    "more of the prompt is to come": ({"family": "bd3lm", "num_left": 2}, {"token": 50}),
}
"""Families, and what differs from a request in `diffusion` whose whole prompt is encoded; and what is found."""


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    """By the case's name."""
    given = [{"mode": "diffusion", "num_output": 0, "num_left": 0, **case} for case, _ in CASES.values()]
    lines = output_of(SCRIPT, *map(json.dumps, given)).splitlines()
    return dict(zip(CASES, [json.loads(line) for line in lines if line.startswith("{")], strict=True))


@pytest.mark.parametrize("name", CASES)
def test_an_extend_call(found: dict[str, dict[str, Any]], name: str) -> None:
    """It leaves a row at its place behind what SGLang counts; without a token, the last one encoded is the newest."""
    expected = CASES[name][1]
    assert {key: found[name][key] for key in expected} == expected
    assert found[name]["num_forwards"] == 1
