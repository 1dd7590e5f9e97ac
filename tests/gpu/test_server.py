"""The engine on a GPU: graphs change nothing, decode steps wait for nothing, and no KV slot is lost."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from serving import Server, generate_body
from sync_guard import FIRST_GUARDED

CASES = Path(__file__).parent.parent / "data" / "nld_cases.json"
VARIANT = "nld-trained-b32-lora"

OPTIONS: list[dict[str, Any]] = [
    {"mode": "autoregressive"},
    {"mode": "diffusion"},
    {"mode": "diffusion", "block_length": 8, "threshold": 0.5},
    {"mode": "diffusion", "block_length": 5, "threshold": None, "steps": 3},
    {"mode": "self_speculation"},
    {"mode": "self_speculation", "block_length": 16},
]


def prompts() -> list[list[int]]:
    cases = json.loads(CASES.read_text())
    return [list(ids) for ids in dict.fromkeys(tuple(c["prompt_ids"]) for c in cases if c["variant"] == VARIANT)]


def bodies(options: dict[str, Any], **sampling: Any) -> list[dict[str, Any]]:
    return [generate_body(ids, 48, dlm=options, **sampling) for ids in prompts()[:8]]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 1.0, "sampling_seed": 7, "top_p": 0.9}], ids=["greedy", "seeded"]
)
def test_graphs_change_nothing(
    guarded: Server, eager: Server, options: dict[str, Any], sampling: dict[str, Any]
) -> None:
    """One request at a time: the graph's shape is the step's, and so the arithmetic is the same."""
    captured, plain = (
        [(a["output_ids"], a["meta_info"]["dlm"]) for a in server.generate_all(bodies(options, **sampling), 1)]
        for server in (guarded, eager)
    )
    assert captured == plain


def test_mixed_batches_wait_for_nothing(guarded: Server) -> None:
    """All modes together, in steps of one forward and of two, greedy and sampled, short and long."""
    random.seed(0)
    options = [*OPTIONS, *[{}] * len(OPTIONS)]  # half are left to the router
    mixed = [
        generate_body(ids, random.randrange(5, 80), dlm=random.choice(options), temperature=random.choice([0, 1.0]))
        for ids in prompts() * 8
    ]
    many_autoregressive = [generate_body(ids, 64, mode="autoregressive", ignore_eos=True) for ids in prompts() * 3]
    answers = guarded.generate_all([*mixed, *many_autoregressive], 64)
    assert all(answer["output_ids"] for answer in answers)
    assert FIRST_GUARDED in guarded.log.read_text()
    guarded.assert_nothing_leaked()


def test_the_router_waits_for_nothing(guarded: Server) -> None:
    """Loads of one request and of many, so that it moves them; costs were measured before the first."""
    for concurrency in (1, 48, 2):
        bodies = [generate_body(ids, 64, ignore_eos=True) for ids in prompts() * 4]
        answers = guarded.generate_all(bodies, concurrency)
        assert all(len(answer["output_ids"]) == 64 for answer in answers)
    assert "Measured the time of forwards" in guarded.log.read_text()
    guarded.assert_nothing_leaked()


def test_block_steps_are_captured(guarded: Server) -> None:
    assert "Captured CUDA graphs of block steps" in guarded.log.read_text()
    assert "without a CUDA graph" not in guarded.log.read_text()
