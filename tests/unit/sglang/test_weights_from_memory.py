"""Tensors that a training loop sends are loaded, or refused before the first parameter changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from processes import output_of

SCRIPT = Path(__file__).parent / "weights_from_memory.py"
DATA = Path(__file__).parents[2] / "data"

Found = dict[str, Any]
"""By the update: why it is refused, empty if it is not, and the parameters that it has changed."""


def found_for(checkpoint: str) -> Found:
    """What `weights_from_memory.py` finds."""
    found: Found = json.loads(output_of(SCRIPT, str(DATA / checkpoint)).splitlines()[-1])
    assert found["the same"] == ["", []]
    for update, words in (("an unknown name", "1 tensors left over: more"), ("another shape", "has shape")):
        refusal, changed = found[update]
        assert words in refusal
        assert changed == []
    return found


def test_one_by_one() -> None:
    refusal, changed = found_for("nld-random-b8")["a part"]
    assert refusal == ""
    assert len(changed) == 1


def test_all_at_once() -> None:
    """BD3-LM folds its modulations into other weights: once each time, and into all that depend on what changed."""
    found = found_for("bd3lm/bd3lm-b4")
    refusal, changed = found["a part"]
    assert "tensors missing" in refusal
    assert changed == []
    refusal, changed = found["all"]
    assert refusal == ""
    assert len(changed) > 1
