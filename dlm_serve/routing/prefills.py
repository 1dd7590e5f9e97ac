"""What the ends of answers take from those that decode.

A step with more tokens ends more answers, but one prefill begins all that follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dlm_serve.routing.batch import Array


class PrefillShape(NamedTuple):
    """What an EXTEND call is over."""

    num_requests: int
    num_tokens: int


@dataclass(frozen=True)
class Interruptions:
    """How prefills come between decode steps."""

    ms: float = 0.0
    """Milliseconds of a prefill, apart from what its tokens take: those are the same however requests decode."""
    ends_per_token: float = 0.0
    """Answers that end for each token that is emitted; as many requests come after them."""

    def ms_per_step(self, tokens: Array | float) -> Array:
        """Return the expected milliseconds of a prefill behind steps that emit so many `tokens`.

        There is one if any request comes, and requests come independently of each other.
        """
        return np.asarray(-self.ms * np.expm1(-self.ends_per_token * np.maximum(tokens, 0.0)))


class PrefillModel:
    """Learns how long prefills take, and how often answers end.

    Requests that come say nothing of that: while the load rises, they are many.
    """

    _FADE_PER_PREFILL = 0.98
    _FADE_PER_END, _FADE_PER_STEP = 0.97, 0.999
    _PRIOR_MS = (5.0, 0.02)
    """Milliseconds of a prefill, and of each of its tokens."""
    _PRIOR_WEIGHT = (1e-3, 10.0)

    def __init__(self) -> None:
        self._sums: tuple[float, ...] = (0.0,) * 5
        self._num_ends = self._num_tokens = 0.0

    def observe(self, prefill: PrefillShape, ms: float) -> None:
        """Learn that `prefill` took `ms` milliseconds. Slow ones count for less, as in `LearnedCosts`."""
        if ms <= 0:
            return
        one, tokens = 1 / ms, prefill.num_tokens / ms
        news = (one * one, one * tokens, tokens * tokens, one, tokens)
        self._sums = tuple(self._FADE_PER_PREFILL * old + new for old, new in zip(self._sums, news, strict=True))

    def interruptions(self, num_steps: int, tokens_per_step: float, num_ends: int) -> Interruptions:
        """Return what is known, once `num_steps` more steps emitted about `tokens_per_step` tokens each.

        `num_ends` answers have ended in them.
        """
        fade = self._FADE_PER_STEP**num_steps * self._FADE_PER_END**num_ends
        self._num_ends = fade * self._num_ends + num_ends
        self._num_tokens = fade * self._num_tokens + num_steps * tokens_per_step
        return Interruptions(max(self._ms(), 0.0), self._num_ends / max(self._num_tokens, 1.0))

    def _ms(self) -> float:
        """Return the constant of the line through all prefills, by least squares."""
        (ms, ms_per_token), (weight, weight_per_token) = self._PRIOR_MS, self._PRIOR_WEIGHT
        one, both, tokens, of_one, of_tokens = self._sums
        one, of_one = one + weight, of_one + weight * ms
        tokens, of_tokens = tokens + weight_per_token, of_tokens + weight_per_token * ms_per_token
        return (of_one * tokens - of_tokens * both) / (one * tokens - both * both)
