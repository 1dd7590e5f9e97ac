"""The best split is the best of all there are: of the next step, and in the long run where answers end."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from router_scenes import CHOICES, FREE, PINNED, PINNED_BLOCKS, WIDTHS, batch_of, card, request_of, requests_of

from dlm_serve.decoding import DecodePlan, Mode, ModeSettings
from dlm_serve.routing.batch import AUTOREGRESSIVE, RunningBatch
from dlm_serve.routing.costs import CostTable, StepShape
from dlm_serve.routing.prefills import Interruptions
from dlm_serve.routing.splits import Splits, tokens_of

CARDS = {"wide": card(), "narrow": card(free_tokens=8, ms_per_token=0.5), "flat": card(free_tokens=1e9)}
MIXES = {
    "free": [FREE] * 5,
    "beside pinned": [FREE, FREE, PINNED, FREE, PINNED_BLOCKS],
    "some permit fewer": [FREE, DecodePlan((FREE.permitted[2], FREE.permitted[-1])), FREE],
}


def ms_of(batch: RunningBatch, kinds: tuple[int, ...], table: CostTable) -> float:
    """The time of a step, said plainly: forwards add up, and padding is taken where it is faster."""
    in_blocks = [kind for kind in kinds if kind != AUTOREGRESSIVE]
    width = max([batch.pinned_width, *(WIDTHS[kind] for kind in in_blocks)])
    num_blocks = len(in_blocks) + batch.num_pinned_blocks
    num_decode = batch.num_requests - num_blocks

    def context(num_rows: int) -> int:
        return round(num_rows * batch.mean_context)

    apart = table.ms(StepShape(num_decode, context(num_decode), num_blocks, width, context(num_blocks)))
    everyone = batch.num_requests
    together = table.ms(StepShape(num_blocks=everyone, width=width, block_context=context(everyone)))
    return min(apart, together) if num_blocks else apart


def rate_of(batch: RunningBatch, kinds: tuple[int, ...], yields: np.ndarray, table: CostTable) -> float:
    gained = sum(float(yields[kind, i]) - 1 for i, kind in enumerate(kinds) if kind != AUTOREGRESSIVE)
    return (batch.num_requests + gained) / ms_of(batch, kinds, table)


def splits_of(batch: RunningBatch, table: CostTable, **options: Any) -> Splits:
    """Those of requests that do not end, unless `interruptions` say that others come."""
    return Splits(batch, table, np.ones(len(batch.free)), **options)


@pytest.mark.parametrize("plans", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("table", CARDS.values(), ids=CARDS)
@pytest.mark.parametrize("seed", range(5))
def test_no_split_into_one_block_length_is_better(plans: list[DecodePlan], table: CostTable, seed: int) -> None:
    batch = batch_of(requests_of(plans))
    yields = np.random.default_rng(seed).uniform(0.5, 12, (len(CHOICES), len(batch.free)))
    best = splits_of(batch, table).best(yields)
    every = (
        kinds
        for k in range(len(CHOICES))
        for kinds in itertools.product(*[[AUTOREGRESSIVE, k] if p else [AUTOREGRESSIVE] for p in batch.permitted[k]])
    )
    most = max(rate_of(batch, kinds, yields, table) for kinds in every)
    found = tuple(best.kinds.tolist())
    assert best.tokens_per_ms == pytest.approx(most)
    assert rate_of(batch, found, yields, table) == pytest.approx(most)
    assert best.ms == pytest.approx(ms_of(batch, found, table))
    assert splits_of(batch, table).assess(best.kinds, yields).tokens_per_ms == pytest.approx(most)


@pytest.mark.parametrize("plans", MIXES.values(), ids=MIXES)
def test_what_is_expected_of_each_way_is_that_of_a_split_that_takes_it_for_all(plans: list[DecodePlan]) -> None:
    batch, table, ways = batch_of(requests_of(plans)), card(free_tokens=8, ms_per_token=0.5), (-1, *range(len(CHOICES)))
    yields = np.random.default_rng(0).uniform(0.5, 12, (len(CHOICES), len(batch.free)))
    yields[1, 0] = 0.0  # it is not weighed
    each = splits_of(batch, table).of_each(yields)
    for kind, rate in zip(ways, each.tolist(), strict=True):
        if kind == 1 or (kind >= 0 and not batch.permitted[kind].all()):
            assert rate == -np.inf
        else:
            assert rate == pytest.approx(rate_of(batch, (kind,) * len(batch.free), yields, table))


@pytest.mark.parametrize(
    ("latency_slo_ms", "kind"), [(None, 3), (100.0, 3), (10.0, 0), (7.0, AUTOREGRESSIVE), (1.0, AUTOREGRESSIVE)]
)
def test_a_step_keeps_within_the_latency(latency_slo_ms: float | None, kind: int) -> None:
    """Longer blocks yield more here, and take longer; where nothing is fast enough the fastest is taken."""
    batch, table = batch_of(requests_of([FREE] * 64)), card(free_tokens=128)
    yields = np.repeat([[1.5], [2.5], [5.0], [15.0]], 64, axis=1)
    assert set(splits_of(batch, table, latency_slo_ms=latency_slo_ms).best(yields).kinds.tolist()) == {kind}


def test_where_a_prefill_comes_behind_every_step_those_with_more_tokens_win() -> None:
    batch, table = batch_of(requests_of([FREE] * 64)), card(free_tokens=128)
    yields = np.repeat([[1.0], [1.6], [2.5], [5.0]], 64, axis=1)
    often, seldom = Interruptions(ms=20.0, requests_per_token=0.1), Interruptions(ms=20.0, requests_per_token=1e-6)
    for interruptions, kind in ((seldom, AUTOREGRESSIVE), (often, 3)):
        splits = splits_of(batch, table, interruptions=interruptions)
        best = splits.best(yields)
        assert set(best.kinds.tolist()) == {kind}
        assert splits.assess(best.kinds, yields).tokens_per_ms == pytest.approx(best.tokens_per_ms)
        took = best.ms + float(interruptions.ms_per_step(np.array(best.tokens)))
        assert best.tokens_per_ms == pytest.approx(best.tokens / took)


@pytest.mark.parametrize("table", CARDS.values(), ids=CARDS)
@pytest.mark.parametrize("number", [1, 5])
@pytest.mark.parametrize("seed", range(5))
def test_no_split_into_one_block_length_is_better_in_the_long_run(table: CostTable, number: int, seed: int) -> None:
    batch, random = batch_of(requests_of([FREE] * number)), np.random.default_rng(seed)
    yields, now = random.uniform(0.5, 33, (len(CHOICES), number)), random.uniform(0.5, 12, number)
    splits = Splits(batch, table, now, Interruptions(ms=5.0, requests_per_token=1e-2))
    every = (
        np.array(kinds) for k in range(len(CHOICES)) for kinds in itertools.product([AUTOREGRESSIVE, k], repeat=number)
    )
    assert splits.best(yields).tokens_per_ms == pytest.approx(
        max(splits.assess(kinds, yields).tokens_per_ms for kinds in every)
    )


NOW = np.array([1.0, 1.0, 1.0, 1.0, 9.0, 4.0])
"""Tokens per step of six requests: two of them are soon over, so that more such must come than there are."""


def closed_loop(rates: np.ndarray, ms: np.ndarray, is_in_blocks: np.ndarray, num_steps: int = 200_000) -> float:
    """Tokens per millisecond where six clients ask: each answer is that of one of six, drawn at random.

    Answers are as long as it takes 100 steps to decode them `NOW`. `ms` [F + 1] is the time of a step, by how many are
    in blocks.
    """
    random = np.random.default_rng(0)
    sorts, num_left, spent, emitted = np.arange(6), 100 * NOW * random.uniform(size=6), 0.0, 0.0
    for _ in range(num_steps):
        spent += ms[is_in_blocks[sorts].sum()]
        emitted += rates[sorts].sum()
        num_left -= rates[sorts]
        for slot in np.flatnonzero(num_left <= 0):
            sorts[slot] = random.integers(6)
            num_left[slot] += 100 * NOW[sorts[slot]]
    return emitted / spent


@pytest.mark.parametrize("kinds", [[-1] * 6, [-1, -1, -1, -1, 3, 3], [1] * 6], ids=["decode", "some", "all"])
def test_what_is_expected_in_the_long_run_is_what_clients_get(kinds: list[int]) -> None:
    batch, table = batch_of(requests_of([FREE] * 6)), card(free_tokens=8, ms_per_token=0.5)
    yields = np.stack([np.minimum(NOW * 1.5, most) for most in (2.0, 4.0, 8.0, 16.0)])
    found = Splits(batch, table, NOW, Interruptions(ms=0.0, requests_per_token=1e-2)).assess(np.array(kinds), yields)
    endless = Splits(batch, table, NOW).assess(np.array(kinds), yields)
    in_blocks, longest = np.array(kinds) != AUTOREGRESSIVE, max(*kinds, 0)
    ms = np.array([ms_of(batch, (longest,) * count + (AUTOREGRESSIVE,) * (6 - count), table) for count in range(7)])
    rates = np.where(in_blocks, yields[longest], 1.0)
    rates /= 1 + 1e-2 * rates  # with the forward behind the end of an answer
    assert found.tokens_per_ms == pytest.approx(closed_loop(rates, ms, in_blocks), rel=0.05)
    assert found.ms == endless.ms == ms[in_blocks.sum()]


def test_a_request_that_decodes_as_is_not_weighed_is_no_slow_one() -> None:
    yields = np.array([[2.0, 1.3], [4.0, 1.3], [0.0, 0.0]])
    assert tokens_of(np.array([2, AUTOREGRESSIVE]), yields).tolist() == [4.0, 1.0]
    assert tokens_of(np.array([0, 2]), yields).tolist() == [2.0, 1.3]


def test_a_split_with_graphs_is_kept_where_more_rows_would_have_none() -> None:
    table, batch = card(), batch_of(requests_of([FREE] * 4))
    table.block_ms[3, 3:] = np.inf
    yields = np.repeat([[1.2], [1.4], [1.6], [9.0]], 4, axis=1)
    splits = Splits(batch, table, np.array([9.9, 9.9, 1.0, 1.0]), Interruptions(5.0, 1e-2))
    kept = splits.assess(np.array([3, 3, AUTOREGRESSIVE, AUTOREGRESSIVE]), yields)
    assert kept.tokens_per_ms > splits.assess(np.full(4, AUTOREGRESSIVE), yields).tokens_per_ms


def test_a_row_too_wide_for_so_many_is_not_chosen_whatever_the_requests_permit() -> None:
    table = card()
    table.block_ms[3, 2:] = np.inf
    batch = batch_of(requests_of([FREE, FREE, DecodePlan((FREE.permitted[2], FREE.permitted[-1]))]))
    best = splits_of(batch, table).best(np.repeat([[1.2], [1.4], [1.6], [9.0]], 3, axis=1))
    assert (best.kinds.tolist().count(3), np.isfinite(best.ms)) == (1, True)


def test_one_request() -> None:
    batch = batch_of([request_of()])
    assert splits_of(batch, card()).best(np.array([[1.2], [1.4], [1.6], [1.8]])).kinds.tolist() == [3]
    assert splits_of(batch, card()).best(np.full((4, 1), 0.9)).kinds.tolist() == [AUTOREGRESSIVE]


def test_a_pinned_row_that_can_be_narrower_widens_no_other() -> None:
    speculates = DecodePlan((ModeSettings(Mode.SELF_SPECULATION, 32, 0.0, budget=64),))
    batch = batch_of(requests_of([speculates, FREE]))
    assert (batch.num_pinned_blocks, batch.pinned_width) == (1, 1)
    assert batch_of(requests_of([speculates, PINNED_BLOCKS])).pinned_width == 16


def test_where_nothing_keeps_the_limit_what_is_permitted_is_chosen() -> None:
    table = card()
    table.decode_ms[1:] = 9
    batch = batch_of(requests_of([DecodePlan((FREE.permitted[1], FREE.permitted[-1]))] * 2))
    best = splits_of(batch, table, latency_slo_ms=1.0).best(np.full((4, 2), 1.5))
    assert set(best.kinds.tolist()) <= {AUTOREGRESSIVE, 2}
    assert best.tokens_per_ms > 0
