"""The policy that measures: the split with the most tokens per second, as far as costs and yields are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dlm_serve.decoding import AUTOREGRESSIVELY, Choice, Evidence, name_of
from dlm_serve.routing.batch import AUTOREGRESSIVE, Array, Integers, RunningBatch
from dlm_serve.routing.costs import CostTable
from dlm_serve.routing.policy import Outcome, Policy
from dlm_serve.routing.prefills import Interruptions
from dlm_serve.routing.splits import Split, Splits, tokens_of
from dlm_serve.routing.trials import Passed, TrialBudget
from dlm_serve.routing.yields import YieldModel

_NOT_ON_TRIAL = -2
_STEPS_IN_ONE_FORWARD = 6
"""Steps of a trial of speculation in one forward, of which the first has no draft."""
_LEAST_LOSS = 0.3
"""Of the time of a trial: what it is taken to lose at least. What it seems to lose is as doubtful as what it may gain,
and between ways that look alike trials would never end."""


class MeasuredPolicy(Policy):
    """Changes the split where another is better by more than `hysteresis`, and spends little time on trials.

    Requests that decode autoregressively show nothing about drafts, and short blocks nothing about later drafts. A
    trial lets requests decode one block, or a longer one, if what that might yield would change the split. Trials lose
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
        self._latency_slo_ms = latency_slo_ms
        self._kinds_before: Integers = np.full(capacity, _NOT_ON_TRIAL)
        self._trials = TrialBudget(trial_share)

    def enter(self, slots: Sequence[int]) -> None:
        """See `Policy`."""
        self.yields.forget(slots)
        self._kinds_before[slots] = _NOT_ON_TRIAL

    def observe(self, slots: Sequence[int], blocks: Sequence[Evidence]) -> None:
        """See `Policy`."""
        self.yields.observe(slots, blocks)

    def start_anew(self) -> None:
        """See `Policy`. Trials have as much time as at the beginning.

        Nothing is kept. Where drafts were hardly ever wrong, worse ones would look like difficult requests for minutes,
        and late drafts, which are rare then, like good ones.
        """
        self.yields = YieldModel(self.choices, len(self._kinds_before))
        self._trials.start_anew()

    def choose(self, batch: RunningBatch, table: CostTable, interruptions: Interruptions, passed: Passed) -> Outcome:
        """See `Policy`."""
        self.yields.fade(passed.ms / 1000)
        self._trials.let_pass(passed)
        expected = self.yields.expected(batch.slots, batch.remaining)
        before = self._without_trial(batch)
        splits = Splits(batch, table, tokens_of(before, expected), interruptions, self._latency_slo_ms)
        kept = splits.assess(before, expected)
        best = splits.best(expected)
        too_slow = self._latency_slo_ms is not None and kept.ms > self._latency_slo_ms
        is_better = best.tokens_per_ms > kept.tokens_per_ms * (1 + self._hysteresis)
        chosen = best if too_slow or is_better else kept
        kinds, num_trial_steps = self._tried(batch, splits, chosen, expected) or (chosen.kinds, 0)
        return Outcome(kinds, self._first(chosen, expected), 1000 * chosen.tokens_per_ms, num_trial_steps)

    def expected_of_each(self, batch: RunningBatch, table: CostTable, interruptions: Interruptions) -> dict[str, float]:
        """See `Policy`."""
        expected = self.yields.expected(batch.slots, batch.remaining)
        now = tokens_of(self._without_trial(batch), expected)
        each = 1000 * Splits(batch, table, now, interruptions).of_each(expected)
        names = map(name_of, (AUTOREGRESSIVELY, *self.choices))
        return {name: round(rate, 1) for name, rate in zip(names, each.tolist(), strict=True) if math.isfinite(rate)}

    def _without_trial(self, batch: RunningBatch) -> Integers:
        """Return how the requests of `batch` decode [F], with those on trial back where they were."""
        before = self._kinds_before[batch.slots]
        return np.where(before == _NOT_ON_TRIAL, batch.kinds, before)

    def _tried(
        self, batch: RunningBatch, splits: Splits, chosen: Split, expected: Array
    ) -> tuple[Integers, int] | None:
        """Return a split to try for so many steps, if it may turn out better and there is time to find out.

        It is the one that would be best if requests were as easy as is still likely; or, where that costs less by
        request that is tried, `chosen` with only the most doubtful moved. No trial follows on another directly: what
        the first has shown is read one decision later.
        """
        has_just_tried = (self._kinds_before != _NOT_ON_TRIAL).any()
        self._kinds_before[:] = _NOT_ON_TRIAL
        if has_just_tried or self._trials.is_spent:
            return None
        hopeful = self.yields.hopeful(batch.slots, batch.remaining)
        hoped = splits.best(hopeful)
        if hoped.tokens_per_ms <= chosen.tokens_per_ms * (1 + self._hysteresis):
            return None
        moved = np.flatnonzero((hoped.kinds != chosen.kinds) & (hoped.kinds != AUTOREGRESSIVE))
        if not len(moved):
            return None
        doubt = hopeful[hoped.kinds[moved], moved] - expected[hoped.kinds[moved], moved]
        row = int(moved[doubt.argmax()])
        single = chosen.kinds.copy()
        single[row] = kind = int(hoped.kinds[row])
        num_steps = self._steps_of_trial(kind)
        price, kinds = min(
            (
                (self._price(splits.assess(kinds, expected), chosen, num_steps), kinds)
                for kinds in (hoped.kinds, single)
            ),
            key=lambda trial: trial[0] / np.count_nonzero(trial[1] != chosen.kinds),
        )
        if not self._trials.allows(price):
            return None
        self._trials.begin(price, chosen.tokens / chosen.ms)
        on_trial = np.flatnonzero(kinds != chosen.kinds)
        self._kinds_before[batch.slots[on_trial]] = chosen.kinds[on_trial]
        return kinds, num_steps

    def _steps_of_trial(self, kind: int) -> int:
        if self.choices[kind].budget is not None:
            return _STEPS_IN_ONE_FORWARD
        return math.ceil(self.yields.forwards_per_block(kind))

    def _price(self, trial: Split, chosen: Split, num_steps: int) -> float:
        """Return the milliseconds that so many steps of `trial` lose against `chosen`, as both are in the long run.

        Infinity if it may not be.
        """
        if self._latency_slo_ms is not None and trial.ms > max(self._latency_slo_ms, chosen.ms):
            return math.inf
        return num_steps * trial.ms * max(1 - trial.tokens_per_ms / chosen.tokens_per_ms, _LEAST_LOSS)

    def _first(self, chosen: Split, expected: Array) -> Choice | None:
        """Return how a new request begins: in blocks, if it may yield as much as the least of those in blocks."""
        in_blocks = np.flatnonzero(chosen.kinds != AUTOREGRESSIVE)
        if not len(in_blocks):
            return None
        kind = int(chosen.kinds[in_blocks].max())
        is_promising = self.yields.usual()[kind] >= expected[kind, in_blocks].min()
        return self.choices[kind] if is_promising or len(in_blocks) == len(chosen.kinds) else None
