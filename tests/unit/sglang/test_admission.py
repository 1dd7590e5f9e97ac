"""What the main process knows of its engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from golden import DATA
from processes import output_of

SCRIPT = Path(__file__).parent / "admission.py"


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What `admission.py` finds for two engines in one process."""
    models = (str(DATA / "nld-trained-b8"), str(DATA / "bd3lm" / "bd3lm-b8"))
    found: dict[str, Any] = json.loads(output_of(SCRIPT, *models).splitlines()[-1])
    return found


def test_each_engine_plans_for_its_own_model(found: dict[str, Any]) -> None:
    assert found["families"] == ["nemotron-labs-diffusion", "bd3lm"]


def test_chats_draw_as_the_server_prefers(found: dict[str, Any]) -> None:
    assert found["drawing"] == {"temperature": 0.3, "top_k": 7, "top_p": None, "repetition_penalty": None}
