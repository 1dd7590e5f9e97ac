"""Weigh what a step yields against what it costs, for every way to split a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlm_serve.routing.batch import AUTOREGRESSIVE, Array, Integers, RunningBatch
from dlm_serve.routing.costs import CostTable
from dlm_serve.routing.prefills import Interruptions


@dataclass(frozen=True)
class Split:
    """How the free requests of a batch may decode, and what is to be expected of it."""

    kinds: Integers  # [F], a choice or AUTOREGRESSIVE
    tokens: float
    """Tokens of a step, of all requests of the batch, pinned ones included."""
    tokens_per_ms: float
    """The same over the time of a step and of the prefills behind it."""
    ms: float
    """The time of a step."""


class Splits:
    """The ways to split the free requests of a batch: n of F in the block forward, the others autoregressive."""

    def __init__(
        self,
        batch: RunningBatch,
        table: CostTable,
        interruptions: Interruptions = Interruptions(),  # noqa: B008  # frozen
        latency_slo_ms: float | None = None,
    ) -> None:
        """Compare by `table` and `interruptions`.

        Splits whose step takes longer than `latency_slo_ms` are left out, unless that is all of them. The choices of
        `batch` are sorted by the length of their rows.
        """
        self._batch = batch
        self._ms = _step_ms(batch, table)
        self._interruptions = interruptions
        self._per_decode_row = float(interruptions.tokens_per_forward(np.array(1.0)))
        self._latency_slo_ms = latency_slo_ms

    def best(self, yields: Array) -> Split:
        """Return the split with the most tokens per millisecond, where a forward yields `yields` [K, F] tokens.

        For each way to decode blocks, requests are sorted by what they yield: so only F + 1 splits are left of it.
        """
        allowed = np.where(self._batch.permitted, self._interruptions.tokens_per_forward(yields), -np.inf)
        gains = np.sort(allowed - self._per_decode_row, axis=1)[:, ::-1]
        tokens = np.empty(self._ms.shape)
        tokens[:, 0] = self._batch.num_requests * self._per_decode_row
        np.cumsum(gains, axis=1, out=tokens[:, 1:])
        tokens[:, 1:] += tokens[:, :1]
        with np.errstate(invalid="ignore"):
            rate = tokens / (self._ms + self._interruptions.ms_per_step(tokens))
        rate[np.isnan(rate)] = -np.inf  # not permitted, and of rows too wide for any graph
        if self._latency_slo_ms is not None:
            is_possible = np.isfinite(rate)
            is_within = is_possible & (self._ms <= self._latency_slo_ms)
            allowed_rate = (
                np.where(is_within, rate, -np.inf) if is_within.any() else np.where(is_possible, 1 / self._ms, 0.0)
            )
        else:
            allowed_rate = rate
        k, count = divmod(int(allowed_rate.argmax()), rate.shape[1])
        kinds = np.full(len(self._batch.free), AUTOREGRESSIVE)
        if count:
            kinds[np.argsort(-allowed[k], kind="stable")[:count]] = k
        return Split(kinds, float(tokens[k, count]), float(rate[k, count]), float(self._ms[k, count]))

    def of_each(self, yields: Array) -> Array:
        """Return the tokens per millisecond [K + 1] of all free requests in one way: autoregressively, then in blocks.

        NaN stands where one of them may not decode so, or is not weighed, or where there is no graph for so many.
        """
        is_weighed = (self._batch.permitted & (yields > 0)).all(axis=1) & np.isfinite(self._ms[:, -1])
        gains = (self._interruptions.tokens_per_forward(yields) - self._per_decode_row).sum(axis=1)
        tokens = self._batch.num_requests * self._per_decode_row + np.append(0.0, np.where(is_weighed, gains, np.nan))
        ms = np.append(self._ms[0, 0], self._ms[:, -1])
        return np.asarray(tokens / (ms + self._interruptions.ms_per_step(tokens)))

    def assess(self, kinds: Integers, yields: Array) -> Split:
        """Return what is to be expected of one split; blocks of several kinds cost as much as the longest."""
        in_blocks = np.flatnonzero(kinds != AUTOREGRESSIVE)
        longest = int(kinds[in_blocks].max()) if len(in_blocks) else 0
        ms = float(self._ms[longest, len(in_blocks)])
        of_blocks = self._interruptions.tokens_per_forward(yields[kinds[in_blocks], in_blocks])
        tokens = (self._batch.num_requests - len(in_blocks)) * self._per_decode_row + float(of_blocks.sum())
        return Split(kinds, tokens, tokens / (ms + float(self._interruptions.ms_per_step(np.array(tokens)))), ms)


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
