"""Read the history of an answer."""

from __future__ import annotations

from typing import Any


def assert_history_tells(answer: dict[str, Any], mask: int) -> None:
    """It has an entry for each forward, and what was last seen at each position, masks apart, is the answer.

    Tokens that come from a prefill may be in no block: the first, and one for each time the request was retracted.
    """
    statistics, output = answer["meta_info"]["dlm"], answer["output_ids"]
    assert len(statistics["history"]) == statistics["nfe"]
    seen: dict[int, int] = {}
    for forward in statistics["history"]:
        seen.update({forward["start"] + i: token for i, token in enumerate(forward["tokens"]) if token != mask})
    assert [seen.get(i, token) for i, token in enumerate(output)] == output
    assert len(set(range(1, len(output))) - seen.keys()) <= answer["meta_info"].get("num_retractions", 0)
