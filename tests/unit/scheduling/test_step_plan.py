"""Which block steps are captured, and which forward each row of a step takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from dlm_serve.decoding import DecodePlan, RequestState
from dlm_serve.families import BD3LM, EFFICIENT_DLM, NEMOTRON_LABS_DIFFUSION, SDAR, SDLM, Family
from dlm_serve.options.request import RequestOptions
from dlm_serve.options.resolve import resolve
from dlm_serve.options.server_file import ServerConfig
from dlm_serve.routing.costs import CostTable
from dlm_serve.scheduling.graph_shapes import GraphShape, GraphShapes
from dlm_serve.scheduling.step_plan import StepPlan

AUTOREGRESSIVE, BLOCK_8, BLOCK_32 = (
    resolve(RequestOptions.parse(options), ServerConfig(), NEMOTRON_LABS_DIFFUSION, 32, ())
    for options in ({"mode": "autoregressive"}, {"mode": "diffusion", "block_length": 8}, {"mode": "self_speculation"})
)

WIDTHS, MAX_ROWS = (4, 8, 16, 32), 256


def ms_of(num_tokens: int) -> float:
    """The time of one forward of an 8B model in bf16 on an H200, in units of reading the weights."""
    return max(1.0, num_tokens / 192)


COSTS = CostTable(
    WIDTHS,
    decode_ms=np.array([ms_of(rows) for rows in range(MAX_ROWS + 1)]),
    block_ms=np.array([[ms_of(rows * width) for rows in range(MAX_ROWS + 1)] for width in WIDTHS]),
    decode_context_ms=0.0,
    block_context_ms=np.zeros(len(WIDTHS)),
)


def speculating(budget: int) -> DecodePlan:
    options = {"mode": "self_speculation", "speculation": "one_forward", "budget": budget}
    return resolve(RequestOptions.parse(options), ServerConfig(), NEMOTRON_LABS_DIFFUSION, 32, ())


CAPTURED_FOR_2 = replace(
    COSTS,
    block_ms=np.vstack([COSTS.block_ms, [[*COSTS.block_ms[-1, :3], *[np.inf] * (MAX_ROWS - 2)]]]),
    widths=(*WIDTHS, 64),
    block_context_ms=np.zeros(5),
)
"""Costs where rows of 64 tokens are captured for up to two requests."""


@pytest.mark.parametrize(
    ("plans", "width"),
    [
        ([speculating(64)] * 2, 64),
        ([speculating(64)] * 3, 32),
        ([speculating(64)] * 2 + [AUTOREGRESSIVE], 64),
        ([speculating(64)] * 2 + [BLOCK_8], 32),
        ([speculating(16)] * 3 + [BLOCK_32], 32),
        ([speculating(16)] * 3, 16),
    ],
)
def test_rows_that_speculate_are_as_wide_as_graphs_are(plans: list[DecodePlan], width: int) -> None:
    assert StepPlan.of(states_of(plans), NEMOTRON_LABS_DIFFUSION.commit, CAPTURED_FOR_2).width == width


def states_of(plans: Sequence[DecodePlan]) -> list[RequestState]:
    """Requests with these plans."""
    return [RequestState(plan) for plan in plans]


def test_shapes_end_at_the_token_budget_and_at_the_running_requests() -> None:
    shapes = GraphShapes.within((32, 4), max_batch_size=20, max_tokens=128)
    expected = [(4, 32), (20, 4), (16, 4), (2, 32), (8, 4), (1, 32), (4, 4), (2, 4), (1, 4)]
    assert [(shape.batch_size, shape.width) for shape in shapes] == expected
    assert (shapes.widths, shapes.max_batch_size, shapes.max_tokens) == ([4, 32], 20, 128)


def test_no_shape_fits_too_small_a_budget() -> None:
    assert len(GraphShapes.within((8, 16), 4, 7)) == 0


@pytest.mark.parametrize(
    ("family", "block_size", "expected"),
    [
        (NEMOTRON_LABS_DIFFUSION, 32, [4, 8, 16, 32]),
        (EFFICIENT_DLM, 8, [4, 8, 16, 32]),
        (SDLM, 4, [4, 8, 16, 32]),
        (BD3LM, 4, [4]),
        (BD3LM, 16, [16]),
        (SDAR, 5, [8]),
    ],
    ids=lambda value: value.name if isinstance(value, Family) else None,
)
def test_widths_that_no_row_takes_are_not_captured(family: Family, block_size: int, expected: list[int]) -> None:
    assert family.commit.usable_widths(block_size, ServerConfig().routing.widths) == expected


@pytest.mark.parametrize(
    ("num_rows", "width", "expected"),
    [
        (1, 1, GraphShape(1, 4)),
        (1, 4, GraphShape(1, 4)),
        (1, 5, GraphShape(1, 32)),
        (3, 4, GraphShape(4, 4)),
        (17, 3, GraphShape(20, 4)),
        (3, 32, GraphShape(4, 32)),
        (5, 32, None),
        (21, 4, None),
        (1, 33, None),
    ],
)
def test_a_step_takes_the_smallest_shape_that_holds_it(num_rows: int, width: int, expected: GraphShape | None) -> None:
    assert GraphShapes.within((32, 4), max_batch_size=20, max_tokens=128).find(num_rows, width) == expected


@pytest.mark.parametrize(
    ("plans", "decode_rows", "block_rows", "width"),
    [
        ([AUTOREGRESSIVE] * 3, (0, 1, 2), (), 1),
        ([BLOCK_8, BLOCK_32], (), (0, 1), 32),
        ([BLOCK_8, AUTOREGRESSIVE], (), (0, 1), 8),
        ([BLOCK_32, *[AUTOREGRESSIVE] * 11], (), tuple(range(12)), 32),
        ([*[AUTOREGRESSIVE] * 12, BLOCK_32], tuple(range(12)), (12,), 32),
        ([AUTOREGRESSIVE, BLOCK_32, *[AUTOREGRESSIVE] * 126], (0, *range(2, 128)), (1,), 32),
        ([*[BLOCK_32] * 64, AUTOREGRESSIVE], (), tuple(range(65)), 32),
    ],
    ids=[
        "all autoregressive",
        "all blocks",
        "a pair",
        "cheap to pad",
        "dear to pad",
        "one among 127",
        "one among blocks",
    ],
)
def test_rows_take_the_cheaper_way(
    plans: list[DecodePlan], decode_rows: tuple[int, ...], block_rows: tuple[int, ...], width: int
) -> None:
    is_padded = bool(block_rows) and any(plans[i] is AUTOREGRESSIVE for i in block_rows)
    assert StepPlan.of(states_of(plans), NEMOTRON_LABS_DIFFUSION.commit, COSTS) == StepPlan(
        decode_rows, block_rows, width, padded_decode=is_padded
    )


def test_drafts_that_windows_verify_take_a_forward_of_their_own() -> None:
    """Beside them no row is padded into another's forward: a step of several forwards samples in the decode forward."""
    options = [{"algorithm": "self_speculative"}, {"block_length": 8}, {"mode": "autoregressive"}, {}]
    plans = [resolve(RequestOptions.parse(asked), ServerConfig(), SDLM, 4, ()) for asked in options]
    assert StepPlan.of(states_of(plans), SDLM.commit, COSTS) == StepPlan((2,), (1, 3), 16, window_rows=(0,))
    assert StepPlan.of(states_of(plans[:1]), SDLM.commit, COSTS) == StepPlan((), (), 1, window_rows=(0,))
