"""A block that was emitted in part starts over: what the client has stays, whatever the model says the second time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from processes import output_of

SCRIPT = Path(__file__).parent / "first_blocks_start_over.py"
EMITTED = [5, 6, 7]
STOP = 2
SAID: dict[str, list[list[int | None]]] = {
    "the same": [[5, 6, 7, 8, 9, 10]],
    "another": [[5, 6, 77, 80, 90, 11], [5, 6, 7, 81, 91, 12]],
    "an end before": [[5, STOP, None, None, None, None], [5, 6, 7, 81, 91, 12]],
    "an end at once": [[5, 6, 7, STOP, None, None]],
}


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str], dict[str, Any]]:
    """By family and what is said."""
    cases = [(family, said) for family in ("efficient-dlm", "nemotron-labs-diffusion") for said in SAID]
    given = [json.dumps({"family": family, "emitted": EMITTED, "said": SAID[said]}) for family, said in cases]
    lines = [json.loads(line) for line in output_of(SCRIPT, *given).splitlines() if line.startswith("{")]
    return dict(zip(cases, lines, strict=True))


@pytest.mark.parametrize("said", SAID)
def test_masked_blocks(found: dict[tuple[str, str], dict[str, Any]], said: str) -> None:
    """The block stays whole: its commit writes its KV."""
    last = SAID[said][-1]
    assert found["efficient-dlm", said] == {
        "pending": [last[3]],
        "tokens": [1 if token is None else token for token in last],
        "num_emitted": [4],
        "starts": [10] * len(SAID[said]),
    }


@pytest.mark.parametrize("said", SAID)
def test_seeded_blocks(found: dict[tuple[str, str], dict[str, Any]], said: str) -> None:
    """What is emitted is in the prompt now: the block goes on with what is not."""
    last = SAID[said][-1]
    assert found["nemotron-labs-diffusion", said] == {
        "pending": [last[3]],
        "tokens": [1 if token is None else token for token in last[3:]],
        "num_emitted": [1],
        "starts": [10] * len(SAID[said]),
    }
