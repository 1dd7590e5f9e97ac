"""What ranks decide in an EXTEND call is what the first of them decides, even where their logits differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from processes import output_of

SCRIPT = Path(__file__).parent / "ranks_agree.py"
CASES = (
    "blocks by confidence",
    "blocks by chance",
    "blocks in a random order",
    "windows",
    "windows by entropy",
    "drafts",
    "drafts by chance",
)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What two ranks come to: of each case, by rank, each by itself and in agreement."""
    found: dict[str, Any] = json.loads(output_of(SCRIPT).splitlines()[-1])
    return found


@pytest.mark.parametrize("case", CASES)
def test_ranks_follow_the_first(found: dict[str, Any], case: str) -> None:
    """In tokens, in what is left of their rows, and in the number of forwards."""
    (alone, agreed), (other_alone, other_agreed) = found[case]
    assert other_alone != alone, "nothing to agree on"
    assert agreed == alone
    assert other_agreed == alone


def test_alone_they_would_wait_for_each_other(found: dict[str, Any]) -> None:
    """Ranks that run different numbers of forwards hang: the reason to agree."""
    (alone, _), (other_alone, _) = found["blocks by confidence"]
    assert other_alone["forwards"] != alone["forwards"]
