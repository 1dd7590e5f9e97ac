"""What steps cost: tables, what is between their entries, and what running steps teach."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from router_scenes import WIDTHS, card

from dlm_serve.routing.costs import CostModel, CostTable, LearnedCosts, MeasuredCosts, StepShape, interpolated

STEPS = (
    StepShape(num_decode=1),
    StepShape(num_decode=30, decode_context=3_000),
    StepShape(num_decode=200, decode_context=200_000),
    StepShape(num_blocks=3, width=8),
    StepShape(num_blocks=30, width=8, block_context=3_000),
    StepShape(num_blocks=64, width=32, block_context=64_000),
    StepShape(num_decode=20, decode_context=10_000, num_blocks=12, width=16, block_context=6_000),
)


@pytest.mark.parametrize(
    ("step", "ms"),
    [
        (StepShape(), 0.0),
        (StepShape(num_decode=1), 7.0),
        (StepShape(num_decode=150, decode_context=100_000), 8.0),
        (StepShape(num_blocks=10, width=32), 7 + 0.02 * (320 - 150)),
        (StepShape(num_blocks=10, width=17), 7 + 0.02 * (320 - 150)),
        (StepShape(num_decode=1, num_blocks=1, width=4), 14.0),
    ],
    ids=["nothing", "one", "context", "blocks", "between widths", "two forwards"],
)
def test_forwards_add_up(step: StepShape, ms: float) -> None:
    assert card().ms(step) == pytest.approx(ms)


@pytest.mark.parametrize(
    ("values", "beyond"),
    [([5, 4, 7, 13], [14.5, 16]), ([5, 6, 12, 13], [13 + 8 / 7, 13 + 16 / 7]), ([5, 5, 6, 5], [6 + 1 / 7, 6 + 2 / 7])],
    ids=["as at the end", "as on the whole", "noise at the end"],
)
def test_beyond_the_largest_size(values: list[float], beyond: list[float]) -> None:
    assert interpolated([1, 2, 4, 8], values, 10)[9:].tolist() == pytest.approx(beyond)


def test_between_sizes() -> None:
    """In proportion, and never less than for fewer rows."""
    assert interpolated([1, 2, 4, 8], [5, 4, 7, 9], 8).tolist() == [5, 5, 5, 6, 7, 7.5, 8, 8.5, 9]


def taught(costs: CostModel, truth: CostTable, rounds: int, seed: int = 0) -> CostTable:
    """What `costs` says after steps that took what `truth` says, more or less."""
    noise = np.random.default_rng(seed)
    for _ in range(rounds):
        for step in STEPS:
            costs.observe(step, truth.ms(step) * noise.uniform(0.95, 1.05))
    return costs.table


def scaled(table: CostTable, factor: float) -> CostTable:
    return replace(
        table,
        decode_ms=table.decode_ms * factor,
        block_ms=table.block_ms * factor,
        decode_context_ms=table.decode_context_ms * factor,
        block_context_ms=table.block_context_ms * factor,
    )


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7])
def test_a_table_that_is_off_is_corrected(factor: float) -> None:
    truth = scaled(card(), factor)
    table = taught(MeasuredCosts(card()), truth, rounds=60)
    for step in STEPS:
        assert table.ms(step) == pytest.approx(truth.ms(step), rel=0.06)
    # The same card: what was not seen is off by as much.
    unseen = StepShape(num_blocks=30, width=4)
    assert table.ms(unseen) == pytest.approx(truth.ms(unseen), rel=0.06)


def test_one_hiccup_teaches_little() -> None:
    costs = MeasuredCosts(card())
    before = taught(costs, card(), rounds=30)
    costs.observe(STEPS[0], 60_000)
    after = taught(costs, card(), rounds=10)
    assert after is not before
    assert after.ms(STEPS[0]) == pytest.approx(before.ms(STEPS[0]), rel=0.06)


def test_costs_are_learned_from_nothing() -> None:
    truth = LearnedCosts(WIDTHS, 256)._tabulated(np.array([4.0, 0.9, 2e-4, 6.0, 0.3, 1e-4]))
    table = taught(LearnedCosts(WIDTHS, 256), truth, rounds=60)
    for step in (*STEPS[1:], StepShape(num_decode=8, decode_context=800), StepShape(num_blocks=16, width=16)):
        assert table.ms(step) == pytest.approx(truth.ms(step), rel=0.1)


@pytest.mark.parametrize("costs", [MeasuredCosts(card()), LearnedCosts(WIDTHS, 256)], ids=["measured", "learned"])
def test_a_table_is_the_same_object_while_nothing_is_learned(costs: CostModel) -> None:
    table = taught(costs, card(), rounds=4)
    assert costs.table is table
    costs.observe(StepShape(), 5.0)
    costs.observe(STEPS[0], 0.0)
    assert costs.table is table
