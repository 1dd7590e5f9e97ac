"""What prefills take from those that decode: a step with more tokens ends more answers, but one prefill begins all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dlm_serve.routing.batch import Array


class PrefillShape(NamedTuple):
    """What an EXTEND call is over."""

    num_requests: int
    num_tokens: int


class PrefillInterval(NamedTuple):
    """How often prefills may come, by SGLang's `--prefill-decode-interval` and its `-min-bs`."""

    num_steps: int = 1
    """Decode steps that there are at least between two prefills,"""
    min_rows: int = 0
    """where at least so many requests decode; else one."""


@dataclass(frozen=True)
class Interruptions:
    """How prefills come between decode steps."""

    ms: float = 0.0
    """Milliseconds of a prefill, apart from what its tokens take: those are the same however requests decode."""
    requests_per_token: float = 0.0
    """Requests that come for each token that is emitted."""
    num_steps: int = 1
    """Decode steps that there are at least between two prefills."""

    def tokens_per_forward(self, yields: Array) -> Array:
        """Return what forwards emit that yield `yields` tokens each, with those behind the ends of answers.

        An answer takes one forward more than it needs, because the host learns late that it has ended. That is much of
        a short answer in wide blocks.
        """
        return np.asarray(yields / (1 + self.requests_per_token * yields))

    def ms_per_step(self, tokens: Array) -> Array:
        """Return the milliseconds of prefills per step, where steps emit so many `tokens`.

        Requests come independently of each other. If none has come in the `num_steps` behind a prefill, the next one
        waits for the first that does.
        """
        per_step = self.requests_per_token * np.maximum(tokens, 0.0)
        one_comes, none_came = -np.expm1(-per_step), np.exp(-self.num_steps * per_step)
        return np.asarray(self.ms * one_comes / (self.num_steps * one_comes + none_came))


class PrefillModel:
    """Learns how long prefills take, and how often they come between steps."""

    _FADE_PER_PREFILL = 0.98
    _FADE_PER_STEP = 0.995
    _PRIOR_MS = np.array([5.0, 0.02])
    """Milliseconds of a prefill, and of each of its tokens."""
    _PRIOR_WEIGHT = np.array([1e-3, 10.0])

    def __init__(self, interval: PrefillInterval = PrefillInterval()) -> None:  # noqa: B008  # immutable
        self._interval = interval
        self._square, self._product = np.zeros((2, 2)), np.zeros(2)
        self._num_requests = self._num_tokens = 0.0
        self._num_unread = 0

    def observe(self, prefill: PrefillShape, ms: float) -> None:
        """Learn that `prefill` took `ms` milliseconds. Slow ones count for less, as in `LearnedCosts`."""
        self._num_unread += prefill.num_requests
        if ms > 0:
            row = np.array([1.0, prefill.num_tokens]) / ms
            self._square = self._FADE_PER_PREFILL * self._square + np.outer(row, row)
            self._product = self._FADE_PER_PREFILL * self._product + row

    def interruptions(self, num_steps: int, num_tokens: int, num_rows: int) -> Interruptions:
        """Return what is known of prefills between steps of `num_rows` requests.

        Since the last call `num_steps` steps have emitted `num_tokens` tokens.
        """
        fade = self._FADE_PER_STEP**num_steps
        self._num_requests = fade * self._num_requests + self._num_unread
        self._num_tokens = fade * self._num_tokens + num_tokens
        self._num_unread = 0
        prior = np.diag(self._PRIOR_WEIGHT)
        fitted = np.linalg.solve(self._square + prior, self._product + prior @ self._PRIOR_MS)
        requests_per_token = self._num_requests / max(self._num_tokens, 1.0)
        between = self._interval.num_steps if num_rows >= self._interval.min_rows else 1
        return Interruptions(max(float(fitted[0]), 0.0), requests_per_token, between)
