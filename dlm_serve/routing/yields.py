"""How many tokens a forward yields: for each request, and for each way to decode its blocks.

A verification of a block of W tokens emits one token and, behind it, each draft up to the first that is wrong. How
likely a draft is wrong, if those before it are right, depends on its position, which all requests share, and on the
request: code is easier than prose. So each request has a difficulty, by which the hazard of every position is
multiplied. This is the frailty model of survival analysis, with gamma-distributed difficulties of mean 1: their
estimates have a closed form, a block that was cut short says nothing about later positions, and what blocks of one
length show serves for those of others.

A row that speculates in one forward verifies a draft that was made further behind, or for another stop. Its drafts
are wrong more often, by a factor that depends on its budget, and it emits in every forward but the first, which has no
draft. Half of its budget are drafts, and half are masks for the next.

What counts is what an answer takes from its beginning to its end. The end cuts a block short, and shows a step late;
both cost the more, the more tokens a forward yields. An answer is taken to end behind any of its tokens with the same
chance: this is one more hazard, of which blocks are no sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dlm_serve.decoding import Choice, Evidence, Mode
from dlm_serve.routing.batch import Array, Integers, Mask

_LEAST_HAZARD = 1e-4
_BUDGETS = (16, 32, 64, 96, 128)
_HAZARD_BY_BUDGET = (1.5, 1.3, 1.2, 1.15, 1.1)
"""How much more often drafts are wrong in one forward of so many tokens: a first guess, which blocks correct."""
_MOST_SPECULATING = 16
"""Requests up to which speculation in one forward is weighed: for more of them there are no CUDA graphs."""


def _most_drafts(choice: Choice) -> int:
    """Return the drafts that a forward verifies at most."""
    if choice.mode is not Mode.SELF_SPECULATION:
        return 0
    most = choice.block_length if choice.budget is None else min(choice.budget // 2, choice.block_length)
    return max(most - 1, 0)


class _Weighed(NamedTuple):
    """Choices whose yields are worked out together."""

    kinds: Integers  # [N], which they are
    factors: Array  # [G], the different factors of their hazards
    group: Integers  # [N], which of these each has
    last: Integers  # [N], the segments of its drafts


class YieldModel:
    """Learns from finished blocks."""

    _SHARED_FADE = 0.998
    """What a block leaves of the weight of those before it that reached as far, for what all requests share."""
    _REQUEST_FADE = 0.97
    """The same for the difficulty of a request."""
    _HALF_LIFE_S = 60.0
    """Seconds after which half of what was learned is forgotten, so that what is never tried is doubted again."""
    _REQUEST_HALF_LIFE_S = 20.0
    _FIRST_GUESS = 0.3
    """The hazard of the first draft, before any was seen. That of later ones is guessed to be that of those before."""
    _GUESS_WEIGHT = 4.0
    """Drafts of each segment that a guess is worth."""
    _ENOUGH = 16.0
    """Drafts of a segment after which what all requests show of it is believed."""
    _POOLED_WEIGHT = 100.0
    """Drafts of each segment that blocks of all lengths are worth, for those of one length."""
    _VARIANCE_GUESS = 1.0
    """The variance of difficulties before any were compared, and how many pairs of blocks that is worth."""
    _VARIANCE_WEIGHT = 2.0
    _VARIANCES = (0.02, 4.0)

    def __init__(self, choices: Sequence[Choice], capacity: int) -> None:
        """Prepare for `choices`, all of blocks, and requests in slots up to `capacity`."""
        self.choices = tuple(choices)
        self._index = {choice: k for k, choice in enumerate(self.choices)}
        self._most = np.array([_most_drafts(choice) for choice in self.choices], dtype=np.int64)
        # Drafts up to the longest of each choice, and behind that of the one before, share a hazard.
        ends = sorted({1, *self._most[self._most > 0].tolist()})
        self._full = np.diff([0, *ends]).astype(np.float64)  # [S], drafts of each segment
        self._last: Integers = np.searchsorted(ends, self._most, side="right")
        before = np.cumsum(self._full) - self._full
        self._drafts = np.clip(np.arange(ends[-1] + 1)[:, None] - before, 0, self._full)  # [number, S], in each segment
        budgets = [choice.budget for choice in self.choices]
        self._speculates = np.array([budget is not None for budget in budgets], dtype=np.bool_)
        self._factor = np.array(
            [1.0 if budget is None else np.interp(budget, _BUDGETS, _HAZARD_BY_BUDGET) for budget in budgets]
        )
        self._of_few, self._of_many = self._weighed(~np.zeros_like(self._speculates)), self._weighed(~self._speculates)
        self._is_diffusion = np.array([choice.mode is Mode.DIFFUSION for choice in choices], dtype=np.bool_)
        diffused = [float(choice.block_length) for choice in choices if choice.mode is Mode.DIFFUSION]
        self._whole = np.array(diffused)[:, None]
        # Of each request: wrong drafts, and drafts that were tried, by segment.
        self._wrong, self._tried = np.zeros(capacity), np.zeros((capacity, len(ends)))
        # Of all: the same by choice and segment, each tried draft weighted by the difficulty of its request.
        size = (len(self.choices), len(ends))
        self._all_wrong, self._all_tried = np.zeros(size), np.zeros(size)
        # How blocks of a request deviate together, over what they would if difficulties varied by 1.
        self._together, self._scale = 0.0, 0.0
        self._forwards, self._blocks = np.where(self._speculates, 1.0, 2.0), np.ones(len(self.choices))
        self._take_up()

    def _weighed(self, is_weighed: Mask) -> _Weighed:
        factors, group = np.unique(self._factor[is_weighed], return_inverse=True)
        return _Weighed(np.flatnonzero(is_weighed), factors, group, self._last[is_weighed])

    def forget(self, slot: int) -> None:
        """Make `slot` ready for another request."""
        self._wrong[slot] = self._tried[slot] = 0

    def fade(self, seconds: float) -> None:
        """Let so many seconds pass, and take up what was observed."""
        left = 0.5 ** (seconds / self._HALF_LIFE_S)
        self._all_wrong *= left
        self._all_tried *= left
        self._together *= left
        self._scale *= left
        left = 0.5 ** (seconds / self._REQUEST_HALF_LIFE_S)
        self._wrong *= left
        self._tried *= left
        self._take_up()

    def observe(self, slots: Sequence[int], blocks: Sequence[Evidence]) -> None:
        """Learn from finished blocks, each of the request in one of `slots`."""
        if not blocks:
            return
        choices, emitted, forwards, is_cut = zip(*blocks, strict=True)
        kinds = np.array([self._index.get(choice, -1) for choice in choices])
        known = np.flatnonzero(kinds >= 0)
        if not len(known):
            return
        kinds = kinds[known]
        num_choices = len(self.choices)
        left = self._SHARED_FADE
        self._blocks = left * self._blocks + np.bincount(kinds, minlength=num_choices)
        self._forwards = left * self._forwards + np.bincount(kinds, np.array(forwards)[known], num_choices)
        drafted = ~self._is_diffusion[kinds]
        at = known[drafted]
        if len(at):
            self._learn_drafts(kinds[drafted], np.array(slots)[at], np.array(emitted)[at], np.array(is_cut)[at])

    def expected(self, slots: Integers, remaining: Array, ends_per_token: float = 0.0) -> Array:
        """Return the tokens per forward [K, B] of the requests in `slots` [B] that want `remaining` [B] more tokens.

        They are those of whole answers, of which `ends_per_token` end for each token.
        """
        return self._per_forward(self._difficulty(slots)[:, None] * self._hazard, remaining, ends_per_token)

    def hopeful(self, slots: Integers, remaining: Array, ends_per_token: float = 0.0) -> Array:
        """Return as many as there would be if drafting were as easy as is still likely: what a trial could show.

        What is in doubt is how difficult each request is, and each position for all of them.
        """
        doubt = np.sqrt(1 / (1 / self._variance + self._wrong[slots])[:, None] + self._doubt**2)
        hazard = self._difficulty(slots)[:, None] * self._hazard
        return self._per_forward(hazard * np.maximum(1 - 1.3 * doubt, 0.05), remaining, ends_per_token)

    def usual(self, ends_per_token: float = 0.0) -> Array:
        """Return the tokens per forward [K] of a request that nothing is known about."""
        return np.asarray(self._per_forward(self._hazard[None], np.full(1, np.inf), ends_per_token)[:, 0])

    def forwards_per_block(self, k: int) -> float:
        """Return how many forwards a block of choice `k` takes."""
        return float(self._forwards[k] / self._blocks[k])

    def _difficulty(self, slots: Integers) -> Array:
        """Return by what the hazards of each request are multiplied [B]: the mean of its gamma posterior."""
        expected_wrong = self._tried[slots] @ self._hazard
        return np.asarray((1 / self._variance + self._wrong[slots]) / (1 / self._variance + expected_wrong))

    def _per_forward(self, hazard: Array, remaining: Array, ends_per_token: float) -> Array:
        """Return the tokens per forward [K, B] where drafts are wrong with `hazard` [B, S].

        An end costs the forward in which it does not show yet and, where a row speculates in one forward, the next
        answer one that emits a single token.
        """
        weighed = self._of_few if len(hazard) <= _MOST_SPECULATING else self._of_many
        tokens_of = _tokens(weighed.factors[:, None, None] * hazard + ends_per_token, self._full)
        tokens = np.ones((len(self.choices), len(hazard)))  # none is better than autoregression where it is not weighed
        tokens[weighed.kinds] = tokens_of[weighed.group, :, weighed.last] * self._correction[weighed.kinds, None]
        if len(self._whole):
            lost = max(ends_per_token, _LEAST_HAZARD)
            tokens[self._is_diffusion] = np.expm1(-lost * self._whole) / np.expm1(-lost)
        tokens = np.minimum(tokens, np.maximum(remaining, 1))
        forwards = (self._forwards / self._blocks)[:, None]
        late = ends_per_token * (tokens + self._speculates[:, None] * (tokens - forwards))
        return np.asarray(tokens / (forwards + late))

    def _learn_drafts(self, kinds: Integers, slots: Integers, emitted: Integers, is_cut: Mask) -> None:
        """Learn from N blocks that were verified, of these choices [N] and of the requests in `slots` [N]."""
        num_right = np.clip(emitted - 1, 0, self._most[kinds])
        is_wrong = (~is_cut & (num_right < self._most[kinds])).astype(np.int64)
        right, up_to_wrong = self._drafts[num_right], self._drafts[num_right + is_wrong]
        # A draft that is wrong was exposed to its hazard for half its time.
        tried = (right + up_to_wrong) / 2 * self._factor[kinds][:, None]
        difficulty, expected = self._difficulty(slots), tried @ self._hazard
        # Blocks of one request are wrong more or less often together, by as much as difficulties vary.
        expected_before = self._tried[slots] @ self._hazard
        fade = self._SHARED_FADE ** len(kinds)
        self._together = fade * self._together + float((is_wrong - expected) @ (self._wrong[slots] - expected_before))
        self._scale = fade * self._scale + float(expected @ expected_before)
        left = self._REQUEST_FADE ** np.bincount(slots, minlength=len(self._wrong))
        self._wrong *= left
        self._tried *= left[:, None]
        np.add.at(self._wrong, slots, is_wrong)
        np.add.at(self._tried, slots, tried)
        seen = np.zeros(self._all_tried.shape)
        np.add.at(seen, kinds, tried > 0)
        left_of_all = self._SHARED_FADE**seen
        self._all_wrong *= left_of_all
        self._all_tried *= left_of_all
        np.add.at(self._all_tried, kinds, difficulty[:, None] * tried)
        np.add.at(self._all_wrong, kinds, up_to_wrong - right)

    def _take_up(self) -> None:
        """Take up what was observed of all requests.

        Sets `_hazard` [S] and by what part it may be wrong, `_doubt` [S]; `_variance` of the difficulties; and
        `_correction` [K], by how much blocks of one length yield more than the hazards of all say: they draft beside
        more or fewer masks.
        """
        hazards, doubts, guess = [], [], self._FIRST_GUESS
        for wrong, tried in zip(self._all_wrong.sum(0).tolist(), self._all_tried.sum(0).tolist(), strict=True):
            # A gamma posterior, whose deviation over its mean is 1 / sqrt(shape).
            shape = wrong + self._GUESS_WEIGHT * guess
            guess = shape / (tried + self._GUESS_WEIGHT)
            hazards.append(guess)
            doubts.append(shape**-0.5 if tried < self._ENOUGH else 0.0)
        self._hazard, self._doubt = np.array(hazards), np.array(doubts)
        own = (self._all_wrong + self._POOLED_WEIGHT * self._hazard) / (self._all_tried + self._POOLED_WEIGHT)
        hazard = self._factor[:, None] * np.stack([own, np.broadcast_to(self._hazard, own.shape)])
        of_own, of_all = _tokens(hazard, self._full)[:, np.arange(len(own)), self._last]
        self._correction = of_own / of_all
        prior = self._VARIANCE_WEIGHT
        variance = (self._together + prior * self._VARIANCE_GUESS) / (self._scale + prior)
        self._variance = min(max(variance, self._VARIANCES[0]), self._VARIANCES[1])


def _tokens(hazard: Array, full: Array) -> Array:
    """Return the tokens [..., S + 1] of blocks whose drafts end with no, the first, ... the last of S segments.

    They are wrong with `hazard` [..., S], and there are `full` [S] in each.
    """
    hazard = np.maximum(hazard, _LEAST_HAZARD)
    tokens = np.ones((*hazard.shape[:-1], hazard.shape[-1] + 1))
    reached = tokens.copy()
    np.exp(-np.cumsum(hazard * full, axis=-1), out=reached[..., 1:])
    # Of the n drafts of a segment, p + p^2 + ... + p^n are right for each block that reaches it.
    tokens[..., 1:] += np.cumsum((reached[..., :-1] - reached[..., 1:]) / np.expm1(hazard), axis=-1)
    return tokens
