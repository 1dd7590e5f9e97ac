"""What can be known without a GPU of kernels that are compiled there: that they are, for every card, and fit it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from compile_only import CAPABILITIES, SMALLEST_SHARED_MEMORY
from processes import output_of

SCRIPT = Path(__file__).with_name("kernels_compile.py")
KERNELS = {
    "block_advance": {"_advance_kernel"},
    "draft_adapter, 4 tokens": {"_add_low_rank_kernel"},
    "draft_adapter, 256 tokens": {"_add_low_rank_kernel"},
    "sample_token, greedy": {"stretch_kernel", "merge_kernel"},
    "sample_token": {"stretch_kernel", "merge_kernel", "filter_kernel"},
}


@pytest.fixture(scope="module")
def shared() -> dict[str, dict[str, int]]:
    """The shared memory of each kernel of each launch on each card, in bytes."""
    found: dict[str, dict[str, int]] = json.loads(output_of(SCRIPT).splitlines()[-1])
    return found


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("launch", KERNELS)
def test_fits_the_smallest_card(shared: dict[str, dict[str, int]], launch: str, capability: int) -> None:
    found = shared[f"{launch} on sm_{capability}"]
    assert found.keys() == KERNELS[launch]
    assert max(found.values()) <= SMALLEST_SHARED_MEMORY
