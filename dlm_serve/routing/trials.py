"""The time that trials may lose: what one is thought to lose is compared with what it did."""

from __future__ import annotations

import math
from typing import NamedTuple

_MOST_SAVED_MS = 100.0
"""Time that may be saved up, and that a server starts with."""
_DECISIONS_WATCHED = 2
"""From a trial on: requests leave their blocks one after the other, there and back, and meanwhile all rows of a step
are as long as the longest."""
_FADE = 0.95
"""What a trial leaves of the weight of those before it."""
_GUESS_MS = 20.0
"""Milliseconds of trials that are supposed to have lost what they were thought to."""


class Passed(NamedTuple):
    """What has passed since the last decision."""

    ms: float
    """Milliseconds of decode steps."""
    num_tokens: int
    """Tokens that these emitted, as far as the host knows."""


class TrialBudget:
    """A share of the time of all decode steps, in milliseconds."""

    def __init__(self, share: float) -> None:
        """Allow trials so much of the time; 0 is none."""
        self._share = share
        self._most_ms = self._left_ms = _MOST_SAVED_MS if share else 0.0
        self._lost_ms = self._thought_ms = 0.0
        self._tokens_per_ms = 0.0
        """Of the last trial: what there would have been without it."""
        self._num_watched = 0
        """Decisions until what it lost is known."""

    def start_anew(self) -> None:
        """Allow as much as at the beginning."""
        self._left_ms = self._most_ms

    def let_pass(self, passed: Passed) -> None:
        """Save a share of the time that has passed, and learn what the last trial loses."""
        self._left_ms = min(self._left_ms + self._share * passed.ms, self._most_ms)
        if self._num_watched:
            self._num_watched -= 1
            self._lost_ms += passed.ms - passed.num_tokens / self._tokens_per_ms

    @property
    def is_spent(self) -> bool:
        """Return whether no trial may be made, whatever it is thought to lose."""
        return self._left_ms <= 0

    def allows(self, thought_ms: float) -> bool:
        """Return whether a trial that is thought to lose so much may be made.

        What costs more than may be saved up is made on credit, once that much is saved; what costs infinitely much is
        not.
        """
        price = self._price(thought_ms)
        return math.isfinite(price) and 0 < min(price, self._most_ms) <= self._left_ms

    def begin(self, thought_ms: float, tokens_per_ms: float) -> None:
        """Pay for a trial that is thought to lose so much of steps that would emit `tokens_per_ms`."""
        self._left_ms -= self._price(thought_ms)
        self._lost_ms, self._thought_ms = _FADE * self._lost_ms, _FADE * self._thought_ms + thought_ms
        self._tokens_per_ms, self._num_watched = tokens_per_ms, _DECISIONS_WATCHED

    def _price(self, thought_ms: float) -> float:
        """Return what is to be paid: as much more than is thought as trials so far have lost."""
        guess = _GUESS_MS
        return thought_ms * max((self._lost_ms + guess) / (self._thought_ms + guess), 1.0)
