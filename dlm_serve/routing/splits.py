"""Weigh what a step yields against what it costs, for every way to split a batch.

Who runs depends on how they decode: in blocks, requests whose drafts are right are soon over, and the others stay. So
ways are not compared by the next step, which could count tokens that can be had only once, but by what steps emit in
the long run, if requests come as before. Of those that come equally often, as many are there as they take long: one
that emits `now` tokens per step, and would emit `rate`, would be there `now / rate` times, where answers end soon.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlm_serve.routing.batch import AUTOREGRESSIVE, Array, Integers, Mask, RunningBatch
from dlm_serve.routing.costs import CostTable
from dlm_serve.routing.prefills import Interruptions

_LONG = 20_000.0
"""Tokens of answers that are so long that who runs is taken to change by the square root only."""
_LEAST_RATE = 0.05
"""Tokens per step that a request is taken to emit at least."""


@dataclass(frozen=True)
class Split:
    """How the free requests of a batch may decode, and what is to be expected of it."""

    kinds: Integers  # [F], a choice or AUTOREGRESSIVE
    tokens: float
    """Tokens of the next step, of all requests of the batch, pinned ones included."""
    ms: float
    """The time of that step."""
    tokens_per_ms: float
    """In the long run, over the time of steps and of the prefills behind them."""


class Splits:
    """The ways to split the free requests of a batch: n of F in the block forward, the others autoregressive."""

    def __init__(
        self,
        batch: RunningBatch,
        table: CostTable,
        now: Array,
        interruptions: Interruptions = Interruptions(),  # noqa: B008  # frozen
        latency_slo_ms: float | None = None,
    ) -> None:
        """Compare by `table` and `interruptions`, for requests that yield `now` [F] tokens per forward as they decode.

        Splits whose step takes longer than `latency_slo_ms` are left out, unless that is all of them. The choices of
        `batch` are sorted by the length of their rows.
        """
        self._batch = batch
        self._num_pinned = batch.num_requests - len(batch.free)
        self._ms = _step_ms(batch, table)
        self._has_graph = np.isfinite(self._ms)
        # In the long run there may be more rows than graphs are for; such a step costs about as much as the largest.
        largest = np.maximum.accumulate(np.where(self._has_graph, self._ms, 0.0), axis=1)
        self._long_run_ms = np.where(self._has_graph, self._ms, largest)
        self._interruptions = interruptions
        self._per_decode_row = float(interruptions.tokens_per_forward(np.array(1.0)))
        self._latency_slo_ms = latency_slo_ms
        self._now = np.maximum(interruptions.tokens_per_forward(now), _LEAST_RATE)
        turnover = _LONG * interruptions.requests_per_token
        self._turnover = turnover / (1 + turnover)

    def best(self, yields: Array) -> Split:
        """Return the split with the most tokens per millisecond, where a forward yields `yields` [K, F] tokens.

        For each way to decode blocks, requests are sorted by what they yield: so only F + 1 splits are left of it.
        """
        rates = self._rates(yields)
        order = np.argsort(-rates, axis=1, kind="stable")
        speed = self._of_sorted(rates, order)
        if self._latency_slo_ms is not None:
            is_possible = np.isfinite(speed)
            is_within = is_possible & (self._ms <= self._latency_slo_ms)
            speed = np.where(is_within, speed, -np.inf) if is_within.any() else np.where(is_possible, 1 / self._ms, 0.0)
        k, count = divmod(int(speed.argmax()), speed.shape[1])
        kinds = np.full(len(self._batch.free), AUTOREGRESSIVE)
        kinds[order[k, :count]] = k
        return self.assess(kinds, yields)

    def of_each(self, yields: Array) -> Array:
        """Return the tokens per millisecond [K + 1] of all free requests in one way: autoregressively, then in blocks.

        -inf stands where one of them may not decode so, or is not weighed, or where there is no graph for so many.
        """
        rates = self._rates(yields)
        speed = self._of_sorted(rates, np.tile(np.arange(rates.shape[1]), (len(rates), 1)))
        return np.append(speed[0, 0], speed[:, -1])

    def assess(self, kinds: Integers, yields: Array) -> Split:
        """Return what is to be expected of one split; blocks of several kinds cost as much as the longest."""
        in_blocks = kinds != AUTOREGRESSIVE
        longest, count = max(int(kinds.max(initial=0)), 0), int(np.count_nonzero(in_blocks))
        of_blocks = yields[np.maximum(kinds, 0), np.arange(len(kinds))]
        rates = self._interruptions.tokens_per_forward(np.where(in_blocks, of_blocks, 1.0))
        there = self._how_many(rates, self._now)
        num_blocks, num_decode, emitted = there @ in_blocks, there @ ~in_blocks, there @ (rates * in_blocks)
        speed = self._in_the_long_run(np.array(longest), num_blocks, num_decode, emitted)
        tokens = float(rates.sum()) + self._num_pinned * self._per_decode_row
        has_graph = self._has_graph[longest, count]
        return Split(kinds, tokens, float(self._ms[longest, count]), float(speed) if has_graph else 0.0)

    def _rates(self, yields: Array) -> Array:
        """Return the tokens per step [K, F] of requests in blocks; 0 where they may not be, or that is not weighed."""
        return np.where(self._batch.permitted, self._interruptions.tokens_per_forward(yields), 0.0)

    def _of_sorted(self, rates: Array, order: Integers) -> Array:
        """Return the tokens per millisecond [K, F + 1] where the first n of `order` [K, F] are in blocks.

        -inf stands where one of them may not be, or where there is no graph for so many.
        """
        rates, now = np.take_along_axis(rates, order, axis=1), self._now[order]
        there = self._how_many(rates, now)
        num_blocks = _first(there)
        num_decode = _first(self._how_many(np.array(self._per_decode_row), now)[:, ::-1])[:, ::-1]
        kinds = np.arange(len(rates))[:, None]
        speed = self._in_the_long_run(kinds, num_blocks, num_decode, _first(there * rates))
        return np.where((_first(rates <= 0) == 0) & self._has_graph, speed, -np.inf)

    def _in_the_long_run(self, kinds: Integers, num_blocks: Array, num_decode: Array, tokens: Array) -> Array:
        """Return the tokens per millisecond of steps with blocks of `kinds`.

        Of requests in blocks, which emit so many `tokens`, and of others there would be as many as is said, but for
        their sum, which is that of the requests at hand.
        """
        scale = len(self._batch.free) / np.maximum(num_blocks + num_decode, 1e-9)  # there may be no free requests
        emitted = scale * (tokens + self._per_decode_row * num_decode) + self._num_pinned * self._per_decode_row
        ms = self._ms_of(kinds, scale * num_blocks) + self._interruptions.ms_per_step(emitted)
        return np.asarray(emitted / np.maximum(ms, 1e-9))  # there may be no requests at all

    def _how_many(self, rates: Array, now: Array) -> Array:
        """Return how many there would be of each request with these `rates`, over how many there are."""
        return np.asarray((now / np.maximum(rates, _LEAST_RATE)) ** self._turnover)

    def _ms_of(self, kinds: Integers, num_blocks: Array) -> Array:
        """Return the time of a step with so many requests in blocks: between whole numbers, of both in turn."""
        last = self._ms.shape[1] - 1
        below = np.minimum(num_blocks.astype(np.int64), last)
        above, part = np.minimum(below + 1, last), num_blocks - below
        return np.asarray((1 - part) * self._long_run_ms[kinds, below] + part * self._long_run_ms[kinds, above])


def tokens_of(kinds: Integers, yields: Array) -> Array:
    """Return the tokens per forward [F] of requests that decode as `kinds` [F], where these yield `yields` [K, F].

    Of a kind that is not weighed, it is taken to be the most that others yield, and at least 1.
    """
    of_blocks = yields[np.maximum(kinds, 0), np.arange(len(kinds))]
    of_blocks = np.where(of_blocks > 0, of_blocks, yields.max(axis=0, initial=1.0))
    return np.where(kinds == AUTOREGRESSIVE, 1.0, of_blocks)


def _first(values: Array | Mask) -> Array:
    """Return the sums [K, F + 1] of the first n of `values` [K, F]."""
    sums = np.zeros((values.shape[0], values.shape[1] + 1))
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums


def _step_ms(batch: RunningBatch, table: CostTable) -> Array:
    """Return the milliseconds of a step [K, F + 1] with n of the free requests in the block forward.

    Autoregressive rows take a forward of their own or are padded into the block forward, whichever is faster. Each
    request counts with the mean context: which of them are in blocks changes little.
    """
    num_free, most = len(batch.free), table.max_rows
    count = np.arange(num_free + 1)
    kinds = [table.index_of(max(choice.row_length, batch.pinned_width)) for choice in batch.choices]
    num_blocks = batch.num_pinned_blocks + count
    num_decode = batch.num_pinned_decode + num_free - count
    block_ms = table.block_ms[kinds]
    per_block = (batch.mean_context * table.block_context_ms)[kinds][:, None]
    per_decode = batch.mean_context * table.decode_context_ms
    of_blocks = block_ms[:, np.minimum(num_blocks, most)] + per_block * num_blocks
    of_decode = table.decode_ms[np.minimum(num_decode, most)] + per_decode * num_decode
    together = block_ms[:, min(batch.num_requests, most), None] + per_block * batch.num_requests
    ms = np.minimum(of_blocks + of_decode, together)
    if not batch.num_pinned_blocks:
        ms[:, 0] = of_decode[0]  # without blocks there is nothing to be padded into
    return np.asarray(ms)
