"""Pin all free requests to one way to decode, in place of the policy, until they are released."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlm_serve.decoding import Choice, Mode
from dlm_serve.routing.batch import AUTOREGRESSIVE, Integers, RunningBatch
from dlm_serve.routing.costs import CostTable
from dlm_serve.routing.policy import Outcome, Policy
from dlm_serve.routing.prefills import Interruptions
from dlm_serve.routing.trials import Passed


class PinnedPolicy(Policy):
    """Chooses the same for all."""

    name = "pinned"

    def __init__(self, choices: Sequence[Choice], pinned: Choice) -> None:
        """Choose `pinned`, which is autoregressive or among `choices`, the ways to decode blocks."""
        super().__init__(choices)
        self._pinned = pinned
        self._first = None if pinned.mode is Mode.AUTOREGRESSIVE else pinned

    def choose(self, batch: RunningBatch, table: CostTable, interruptions: Interruptions, passed: Passed) -> Outcome:
        """See `Policy`. A request without rows of that length takes the nearest of the same kind that it permits."""
        return Outcome(self._kinds(batch), self._first)

    def _kinds(self, batch: RunningBatch) -> Integers:
        if self._first is None:
            return np.full_like(batch.kinds, AUTOREGRESSIVE)
        alike = [
            c.mode is self._pinned.mode and (c.budget is None) is (self._pinned.budget is None) for c in self.choices
        ]
        is_fit = batch.permitted & np.array(alike)[:, None]
        lengths = np.array([choice.row_length for choice in self.choices])
        distance = np.abs(lengths - self._pinned.row_length)[:, None]
        nearest = np.where(is_fit, distance, np.inf).argmin(axis=0)
        return np.where(is_fit.any(axis=0), nearest, batch.kinds)
