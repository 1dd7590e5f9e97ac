"""Decide from time to time how the running requests decode, and say so in a message that every rank applies."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dlm_serve.decoding import AUTOREGRESSIVELY, Choice, name_of
from dlm_serve.routing.batch import AUTOREGRESSIVE, Roster, RunningBatch, RunningRequest
from dlm_serve.routing.costs import CostModel, CostTable, StepShape
from dlm_serve.routing.policy import Outcome, Policy
from dlm_serve.routing.prefills import Interruptions, PrefillInterval, PrefillModel, PrefillShape
from dlm_serve.routing.trials import Passed

STEPS_BETWEEN = {0: 8, 32: 16, 96: 32}
"""Steps from one decision to the next, from so many requests on: 8 are four blocks of self-speculation. With many a
decision takes the host longer."""

_LEAST_ROWS, _STEPS = tuple(STEPS_BETWEEN), tuple(STEPS_BETWEEN.values())


@dataclass(frozen=True)
class Decision:
    """What ranks are told. It is applied in the same iteration of their loops, so none can differ from another."""

    choices: dict[str, Choice | None] = field(default_factory=dict)
    """By request id, the blocks to go on with; None is autoregressively."""
    first: Choice | None = None
    """How the requests that come next begin."""
    costs: CostTable | None = None
    """The costs by which steps are planned; None leaves those that are known."""


class Router:
    """Asks its policy every few steps, and at once when the batch has changed by much."""

    def __init__(
        self,
        policy: Policy,
        costs: CostModel,
        capacity: int,
        prefill_interval: PrefillInterval = PrefillInterval(),  # noqa: B008  # immutable
    ) -> None:
        self.policy = policy
        self.costs = costs
        self.outcome: Outcome | None = None
        """The last answer of the policy."""
        self.num_switches = 0
        """Times that a request was told to go on in another way."""
        self.num_trials = 0
        self._pinned: Policy | None = None
        """What chooses in place of the policy."""
        self._is_changed = False
        """Whether that has changed since the last decision."""
        self._decided_by: tuple[RunningBatch, CostTable, Interruptions] | None = None
        """What that was based on."""
        self._roster = Roster(policy.choices, capacity)
        self._told: CostTable | None = None
        self._first: Choice | None = None
        self._last_step = -max(_STEPS)
        self._num_rows = 0
        self._elapsed_ms = 0.0
        self._num_steps = 0
        self._num_decoded = 0
        self._prefills = PrefillModel(prefill_interval)
        self._mean_context = 0.0

    def observe(self, step: StepShape, ms: float) -> None:
        """Learn that a step took `ms` milliseconds; its context is that of the last decision."""
        self._elapsed_ms += ms
        self._num_steps += 1
        of_decode, of_blocks = (round(self._mean_context * rows) for rows in (step.num_decode, step.num_blocks))
        self.costs.observe(replace(step, decode_context=of_decode, block_context=of_blocks), ms)

    def observe_prefill(self, prefill: PrefillShape, ms: float) -> None:
        """Learn that a prefill took `ms` milliseconds."""
        self._prefills.observe(prefill, ms)

    def pin(self, policy: Policy | None) -> None:
        """Let `policy` choose from the next decision on, while the router's own learns nothing of blocks.

        None lets the router's own choose again.
        """
        self._pinned, self._is_changed = policy, True

    def start_anew(self) -> None:
        """Let the policy forget what it learned, and what requests have shown since the last decision, unread."""
        self._roster.take_evidence()
        self.policy.start_anew()

    def is_due(self, step: int, num_rows: int) -> bool:
        """Return whether to decide before the engine's `step`, in which `num_rows` requests decode."""
        since = step - self._last_step
        between = _STEPS[bisect_right(_LEAST_ROWS, num_rows) - 1]
        by_much = abs(num_rows - self._num_rows) * 4 > self._num_rows
        is_tried = self.outcome is not None and 0 < self.outcome.num_trial_steps <= since
        return self._is_changed or since >= between or is_tried or (since > 0 and by_much)

    def decide(self, requests: Sequence[RunningRequest], step: int, num_decoded: int = 0) -> Decision | None:
        """Return what to change before the engine's `step`; None if nothing.

        `num_decoded` is how many tokens decode steps have emitted so far, of all requests.
        """
        self._last_step, self._num_rows, self._is_changed = step, len(requests), False
        told, self._told = self._told, self.costs.table
        first, policy = self._first, self.policy
        slots, blocks = self._roster.take_evidence()
        if self._pinned is None:  # a pin shall not change what is done behind it
            policy.observe(slots, blocks)
        batch = self._roster.update(requests, policy.enter)
        self._mean_context = batch.mean_context
        changes: dict[str, Choice | None] = {}
        chooser = self._pinned or policy
        passed = Passed(self._elapsed_ms, num_decoded - self._num_decoded)
        interruptions = self._prefills.interruptions(self._num_steps, passed.num_tokens, len(requests))
        self._elapsed_ms, self._num_steps, self._num_decoded = 0.0, 0, num_decoded
        if batch.free or self._pinned:
            self._decided_by = batch, self._told, interruptions
            outcome = self.outcome = chooser.choose(*self._decided_by, passed)
            self._first = outcome.first
            for i in np.flatnonzero(outcome.kinds != batch.kinds).tolist():
                kind = int(outcome.kinds[i])
                self.num_switches += 1
                changes[batch.free[i].rid] = None if kind == AUTOREGRESSIVE else policy.choices[kind]
            self._roster.kinds[batch.slots] = outcome.kinds
            self.num_trials += outcome.num_trial_steps > 0
        elif self.outcome is not None:
            self.outcome = replace(self.outcome, num_trial_steps=0)  # whoever was on trial has ended
        if not changes and first == self._first and told is self._told:
            return None
        return Decision(changes, self._first, None if told is self._told else self._told)

    def report(self) -> dict[str, object]:
        """Return what was decided last and why, and how often requests were moved."""
        outcome = self.outcome
        if outcome is None:
            return {"policy": (self._pinned or self.policy).name}
        kinds, counts = np.unique(outcome.kinds, return_counts=True)
        return {
            "policy": (self._pinned or self.policy).name,
            "requests": {self._named(kind): int(n) for kind, n in zip(kinds.tolist(), counts, strict=True)},
            "expected_tokens_per_s": outcome.tokens_per_s and round(outcome.tokens_per_s, 1),
            "expected_of_each": self._expected_of_each(),
            "switches": self.num_switches,
            "trials": self.num_trials,
        }

    def _expected_of_each(self) -> dict[str, float]:
        """Return what is expected of the requests of the last decision in each way, where all of them decode so."""
        return {} if self._decided_by is None else (self._pinned or self.policy).expected_of_each(*self._decided_by)

    def _named(self, kind: int) -> str:
        return name_of(AUTOREGRESSIVELY if kind == AUTOREGRESSIVE else self.policy.choices[kind])
