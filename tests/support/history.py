"""Read the history of an answer."""

from __future__ import annotations

from typing import Any


def assert_history_tells(answer: dict[str, Any], mask: int) -> None:
    """It has an entry for each forward, and what was last seen at each position, masks apart, is the answer.

    The first token may come from the prefill, and be in no block.
    """
    statistics, output = answer["meta_info"]["dlm"], answer["output_ids"]
    assert len(statistics["history"]) == statistics["nfe"]
    seen: dict[int, int] = {}
    for forward in statistics["history"]:
        seen.update({forward["start"] + i: token for i, token in enumerate(forward["tokens"]) if token != mask})
    assert [seen.get(i) for i in range(1, len(output))] == output[1:]
    assert seen.get(0, output[0]) == output[0]
