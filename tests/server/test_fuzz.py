"""Random requests to a crowded server; `make fuzz` sends thousands to each family."""

from __future__ import annotations

from fuzz import Fuzzer
from serving import Server


def test_random_requests(crowded: Server) -> None:
    """No answer of 5xx, none cut off, no unknown option ignored, no KV slot lost, whoever leaves in between."""
    assert Fuzzer(crowded, seed=0).run(range(100)) == []
