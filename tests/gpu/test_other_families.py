"""The other families on a GPU: what test_server.py says of Nemotron-Labs-Diffusion, on their recorded requests."""

from __future__ import annotations

from typing import Any

import pytest
from examples import Example
from serving import Server
from sync_guard import FIRST_GUARDED

ALONE = 24
"""Requests that are sent one at a time."""


def sampled(body: dict[str, Any], seed: int) -> dict[str, Any]:
    """The same request, by chance."""
    chance = {"temperature": 1.0, "top_p": 0.9, "sampling_seed": seed}
    return {**body, "sampling_params": {**body["sampling_params"], **chance}}


def answers(server: Server, bodies: list[dict[str, Any]]) -> list[tuple[list[int], dict[str, Any]]]:
    return [(a["output_ids"], a["meta_info"]["dlm"]) for a in server.generate_all(bodies, 1)]


@pytest.mark.parametrize("seeded", [False, True], ids=["greedy", "seeded"])
def test_graphs_change_nothing(guarded_example: Server, eager_example: Server, example: Example, seeded: bool) -> None:
    """One request at a time, through all options that the cases have."""
    bodies = example.bodies[:: len(example.bodies) // ALONE]
    if seeded:
        bodies = [sampled(body, seed) for seed, body in enumerate(bodies)]
    assert answers(guarded_example, bodies) == answers(eager_example, bodies)


def test_batches_wait_for_nothing(guarded_example: Server, example: Example) -> None:
    """All requests together, half of them by chance."""
    mixed = [sampled(body, i) if i % 2 else body for i, body in enumerate(example.bodies)]
    found = guarded_example.generate_all(mixed, 48)
    assert all(answer["output_ids"] for answer in found)
    log = guarded_example.log.read_text()
    assert FIRST_GUARDED in log
    assert "Captured CUDA graphs of block steps" in log
    assert "without a CUDA graph" not in log
    guarded_example.assert_nothing_leaked()
