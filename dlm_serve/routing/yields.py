"""How many tokens a forward yields: for each request, and for each way to decode its blocks.

A verification of a block of W tokens emits one token and, behind it, each draft up to the first that is wrong. Whether
a draft is right, given that those before it are, hardly depends on what else is drafted: so the survival curve of
drafts by position says what blocks of every length yield, and a block that ended before a position says nothing about
it. A request has few blocks: its curve is drawn to that of all requests, by `_PRIOR_BLOCKS` blocks' worth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from dlm_serve.decoding import Evidence, Mode
from dlm_serve.routing.batch import Array, Choice, Integers

_ENDS = np.array([2, 4, 8, 16, 32, 64])
"""Drafts 1, 2 to 3, 4 to 7, ... 32 to 63 share a probability: segment s ends before `_ENDS[s]`."""
_STARTS = np.array([1, 2, 4, 8, 16, 32])
_FULL = _ENDS - _STARTS
_SURE = 1 - 1e-9
"""The greatest probability that a sum of a geometric series is taken for."""


class YieldModel:
    """Learns from finished blocks."""

    _PRIOR_BLOCKS = 3.0
    _REQUEST_FADE = 0.97
    """What a block of a request leaves of the weight of those before it."""
    _SHARED_FADE = 0.998
    """The same for all requests together."""
    _HALF_LIFE_S = 60.0
    """Seconds after which half of what was learned is forgotten, so that what is never tried is doubted again."""
    _FIRST_GUESS = 0.75
    """The probability that the first draft is right, before any was seen; later ones are as likely as those before."""
    _GUESS_WEIGHT = 4.0
    """Drafts of each segment that a guess is worth."""

    def __init__(self, choices: Sequence[Choice], capacity: int) -> None:
        """Prepare for `choices`, all of blocks, and requests in slots up to `capacity`."""
        self.choices = tuple(choices)
        self._index = {choice: k for k, choice in enumerate(self.choices)}
        self._lengths = np.array([_drafts_per_segment(length - 1) for _, length in self.choices])  # [K, S]
        self._is_diffusion = np.array([mode is Mode.DIFFUSION for mode, _ in choices], dtype=np.bool_)
        self._whole = np.array([float(length) for mode, length in choices if mode is Mode.DIFFUSION])[:, None]
        self._tried = np.zeros((capacity, len(_ENDS)))  # drafts of each request, by segment
        self._right = np.zeros((capacity, len(_ENDS)))
        self._all_tried, self._all_right = np.zeros(len(_ENDS)), np.zeros(len(_ENDS))
        self._rate = self._rates()
        # By choice: what blocks emitted, what was expected of them (as much, at first), and the forwards they took.
        self._emitted, self._expected = np.full(len(self.choices), 20.0), np.full(len(self.choices), 20.0)
        self._forwards, self._blocks = np.full(len(self.choices), 2.0), np.ones(len(self.choices))

    def forget(self, slot: int) -> None:
        """Make `slot` ready for another request."""
        self._tried[slot] = self._right[slot] = 0

    def fade(self, seconds: float) -> None:
        """Let so many seconds pass, and take up what was observed of all requests."""
        left = 0.5 ** (seconds / self._HALF_LIFE_S)
        self._all_right *= left
        self._all_tried *= left
        self._rate = self._rates()

    def observe(self, slot: int, blocks: Iterable[Evidence]) -> None:
        """Learn from finished blocks of the request in `slot`."""
        for block in blocks:
            k = self._index.get((block.mode, block.block_length))
            if k is None:
                continue
            self._learn_rates(k, slot, block)
            if block.mode is Mode.SELF_SPECULATION:
                self._learn_drafts(slot, block)

    def expected(self, slots: Integers, remaining: Array) -> Array:
        """Return the tokens per forward [K, B] of the requests in `slots` [B] that want `remaining` [B] more tokens."""
        return self._per_forward(self._chance(slots), remaining)

    def hopeful(self, slots: Integers, remaining: Array) -> Array:
        """Return as many as a standard deviation allows: what a trial could show."""
        chance = self._chance(slots)
        weight = self._tried[slots] + self._PRIOR_BLOCKS
        return self._per_forward(np.minimum(chance + np.sqrt(chance * (1 - chance) / (weight + 1)), 1), remaining)

    def _chance(self, slots: Integers) -> Array:
        """Return how likely a draft of each request is right [B, S], given that those before it are."""
        weight = self._tried[slots] + self._PRIOR_BLOCKS
        return np.asarray((self._right[slots] + self._PRIOR_BLOCKS * self._rate) / weight)

    def usual(self) -> Array:
        """Return the tokens per forward [K] of a request that nothing is known about."""
        return np.asarray(self._per_forward(self._rate[None], np.full(1, np.inf))[:, 0])

    def forwards_per_block(self, k: int) -> float:
        """Return how many forwards a block of choice `k` takes."""
        return float(self._forwards[k] / self._blocks[k])

    def _per_forward(self, chance: Array, remaining: Array) -> Array:
        per_block = np.minimum(self._per_block(chance), np.maximum(remaining, 1))
        return np.asarray(per_block / (self._forwards / self._blocks)[:, None])

    def _per_block(self, chance: Array) -> Array:
        """Return the tokens per block [K, B] where a draft is right with `chance` [B, S]."""
        # In a segment that n drafts reach into, its drafts yield p + p^2 + ... + p^n for each block that reaches it.
        log = np.log(np.minimum(chance, _SURE))
        reached = np.exp(np.cumsum(log * _FULL, axis=1) - log * _FULL)
        chance = np.exp(log)
        series = chance / (1 - chance) * -np.expm1(log * self._lengths[:, None, :])  # [K, B, S]
        tokens = 1 + (reached * series).sum(axis=2)
        tokens[self._is_diffusion] = self._whole
        return np.asarray(tokens * (self._emitted / self._expected)[:, None])

    def _rates(self) -> Array:
        """Return how likely a draft is right [S], over all requests."""
        rates, guess = [], self._FIRST_GUESS
        for right, tried in zip(self._all_right.tolist(), self._all_tried.tolist(), strict=True):
            guess = (right + self._GUESS_WEIGHT * guess) / (tried + self._GUESS_WEIGHT)
            rates.append(guess)
        return np.array(rates)

    def _learn_rates(self, k: int, slot: int, block: Evidence) -> None:
        """Learn how many forwards a block takes, and how far what blocks emit is from what was expected."""
        self._blocks[k] = self._SHARED_FADE * self._blocks[k] + 1
        self._forwards[k] = self._SHARED_FADE * self._forwards[k] + block.num_forwards
        if block.is_cut or block.mode is Mode.DIFFUSION:
            return
        expected = float(self._per_block(self._chance(np.array([slot])))[k, 0] * self._expected[k] / self._emitted[k])
        self._emitted[k] = self._SHARED_FADE * self._emitted[k] + block.num_emitted
        self._expected[k] = self._SHARED_FADE * self._expected[k] + expected

    def _learn_drafts(self, slot: int, block: Evidence) -> None:
        num_right = max(block.num_emitted - 1, 0)
        was_wrong = not block.is_cut and num_right < block.block_length - 1
        right, tried = _drafts_per_segment(num_right), _drafts_per_segment(num_right + was_wrong)
        self._right[slot] = self._REQUEST_FADE * self._right[slot] + right
        self._tried[slot] = self._REQUEST_FADE * self._tried[slot] + tried
        self._all_right = self._SHARED_FADE * self._all_right + right
        self._all_tried = self._SHARED_FADE * self._all_tried + tried


def _drafts_per_segment(number: int) -> Array:
    """Return how many of the first `number` drafts of a block lie in each segment [S]."""
    return np.clip(number + 1 - _STARTS, 0, _FULL).astype(np.float64)
