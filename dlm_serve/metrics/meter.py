"""Count requests, from the same numbers as their statistics: those that run when somebody asks, others as they end.

A step costs nothing here: requests tally what they do anyway.
"""

from __future__ import annotations

from dlm_serve.decoding import Commit, RequestState
from dlm_serve.metrics import registry
from dlm_serve.metrics.counts import Counts
from dlm_serve.metrics.registry import Outcome, StepKind
from dlm_serve.metrics.sums import Sums


class Meter:
    """Counts the requests and steps of one scheduler."""

    def __init__(self) -> None:
        self.num_decoded = 0
        """Tokens that decode steps added to answers, less those behind their ends."""
        self._ends = Counts()
        """What is known of a request only at its end, and of steps."""
        self._ended = Sums()
        self._running: dict[int, RequestState] = {}
        """By identity."""

    def begin(self, state: RequestState) -> None:
        """Count a request from now on."""
        self._running[id(state)] = state

    def end(self, state: RequestState, num_tokens: int, outcome: Outcome) -> None:
        """Count a request that has ended with an answer of `num_tokens`, whether it began to run or not."""
        self._running.pop(id(state), None)
        self.num_decoded += num_tokens - state.num_tokens
        state.end(num_tokens)
        self._ended.add(state)
        mode = state.current.mode
        self._ends.add(registry.REQUESTS, mode, outcome)
        if state.num_steps:
            self._ends.observe(registry.TOKENS_PER_FORWARD, num_tokens / state.num_steps, mode)

    def observe_step(self, kind: StepKind, width: int, seconds: float) -> None:
        """Count a decode step."""
        self._ends.observe(registry.STEP_SECONDS, seconds, kind, str(width))

    def counts(self, commit: Commit) -> Counts:
        """Return what was counted by now, which only grows from one call to the next.

        Forwards count with the block that they lead to, tokens that may be taken back with the end of the answer.
        """
        counts, sums = self._ends.copy(), self._ended.copy()
        for state in self._running.values():
            sums.add(state, with_tokens=not state.plan.may_shrink)
        sums.count(counts, commit)
        return counts
