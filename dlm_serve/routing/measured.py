"""The policy that measures: the split with the most tokens per second, as far as costs and yields are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlm_serve.decoding import RequestState
from dlm_serve.routing.batch import AUTOREGRESSIVE, Array, Choice, Integers, RunningBatch
from dlm_serve.routing.costs import CostTable
from dlm_serve.routing.policy import Split, Splits
from dlm_serve.routing.router import Outcome, Policy
from dlm_serve.routing.yields import YieldModel

_NOBODY = -1


class MeasuredPolicy(Policy):
    """Changes the split where another is better by more than `hysteresis`, and spends little time on trials.

    Requests that decode autoregressively show nothing about drafts, and short blocks nothing about later drafts. A
    trial lets a request decode one block, or a longer one, if what that might yield would change the split. Trials take
    at most `trial_share` of the time.
    """

    name = "measured"

    def __init__(
        self,
        choices: Sequence[Choice],
        capacity: int,
        hysteresis: float,
        trial_share: float,
        latency_slo_ms: float | None = None,
    ) -> None:
        super().__init__(choices)
        self.yields = YieldModel(self.choices, capacity)
        self._hysteresis = hysteresis
        self._trial_share = trial_share
        self._latency_slo_ms = latency_slo_ms
        self._trial_slot, self._kind_before = _NOBODY, AUTOREGRESSIVE
        self._budget_ms = 0.0

    def enter(self, slot: int, state: RequestState) -> None:
        """See `Policy`."""
        self.yields.forget(slot)

    def observe(self, slot: int, state: RequestState) -> None:
        """See `Policy`."""
        self.yields.observe(slot, state.evidence)
        state.evidence.clear()

    def choose(self, batch: RunningBatch, table: CostTable, elapsed_ms: float) -> Outcome:
        """See `Policy`."""
        self.yields.fade(elapsed_ms / 1000)
        self._budget_ms += self._trial_share * elapsed_ms
        expected = self.yields.expected(batch.slots, batch.remaining)
        splits = Splits(batch, table, self._latency_slo_ms)
        kept = splits.assess(self._without_trial(batch), expected)
        best = splits.best(expected)
        too_slow = self._latency_slo_ms is not None and kept.ms > self._latency_slo_ms
        is_better = best.tokens_per_ms > kept.tokens_per_ms * (1 + self._hysteresis)
        chosen = best if too_slow or is_better else kept
        tried = self._tried(batch, splits, chosen, expected)
        autoregressive = splits.assess(np.full(len(batch.free), AUTOREGRESSIVE), expected)
        return Outcome(
            chosen.kinds if tried is None else tried,
            self._first(chosen, expected),
            1000 * chosen.tokens_per_ms,
            1000 * autoregressive.tokens_per_ms,
            is_trial=tried is not None,
        )

    def _without_trial(self, batch: RunningBatch) -> Integers:
        """Return how the requests of `batch` decode [F], with the one on trial back where it was."""
        return np.where(batch.slots == self._trial_slot, self._kind_before, batch.kinds)

    def _tried(self, batch: RunningBatch, splits: Splits, chosen: Split, expected: Array) -> Integers | None:
        """Return `chosen` with one request moved, if that may show a better split and there is time to find out."""
        self._trial_slot = _NOBODY
        if self._budget_ms <= 0:
            return None
        hopeful = self.yields.hopeful(batch.slots, batch.remaining)
        hoped = splits.best(hopeful)
        if hoped.tokens_per_ms <= chosen.tokens_per_ms * (1 + self._hysteresis):
            return None
        moved = np.flatnonzero((hoped.kinds != chosen.kinds) & (hoped.kinds != AUTOREGRESSIVE))
        if not len(moved):
            return None
        hoped_kinds = hoped.kinds[moved]
        row = int(moved[(hopeful[hoped_kinds, moved] - expected[hoped_kinds, moved]).argmax()])
        kinds = chosen.kinds.copy()
        kinds[row] = hoped.kinds[row]
        trial = splits.assess(kinds, expected)
        lost = 1 - trial.tokens_per_ms / chosen.tokens_per_ms
        price = max(self.yields.forwards_per_block(int(kinds[row])) * trial.ms * lost, 0.0)
        if price > self._budget_ms:
            return None
        # What is left over is not saved up for a burst of trials.
        self._budget_ms = min(self._budget_ms - price, price)
        self._trial_slot, self._kind_before = int(batch.slots[row]), int(chosen.kinds[row])
        return kinds

    def _first(self, chosen: Split, expected: Array) -> Choice | None:
        """Return how a new request begins: in blocks, if it may yield as much as the least of those in blocks."""
        in_blocks = np.flatnonzero(chosen.kinds != AUTOREGRESSIVE)
        if not len(in_blocks):
            return None
        kind = int(chosen.kinds[in_blocks].max())
        is_promising = self.yields.usual()[kind] >= expected[kind, in_blocks].min()
        return self.choices[kind] if is_promising or len(in_blocks) == len(chosen.kinds) else None
