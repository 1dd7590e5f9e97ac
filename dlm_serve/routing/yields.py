"""How many tokens a forward yields: for each request, and for each way to decode its blocks.

A verification of a block of W tokens emits one token and, behind it, each draft up to the first that is wrong. How
likely a draft is wrong, if those before it are right, depends on its position, which all requests share, and on the
request: code is easier than prose. So each request has a difficulty, by which the hazard of every position is
multiplied. This is the frailty model of survival analysis, with gamma-distributed difficulties of mean 1: their
estimates have a closed form, a block that was cut short says nothing about later positions, and what blocks of one
length show serves for those of others.

A row that speculates in one forward emits in every forward. It verifies a draft that was made further behind, or for
another stop, and is not as long as it might be. So it stops earlier, by a factor that was measured for each budget.

All of this leaves out how blocks end with the answer, that its first row may have no draft, and what else models do. So
what each choice yields is taken to be more or less than all this says, by as much as it was so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dlm_serve.decoding import Choice, Evidence, Mode
from dlm_serve.routing.batch import Array, Integers

_ENDS = np.array([2, 4, 8, 16, 32, 64])
"""Drafts 1, 2 to 3, 4 to 7, ... 32 to 63 share a hazard: segment s ends before `_ENDS[s]`."""
_STARTS = np.array([1, 2, 4, 8, 16, 32])
_FULL = _ENDS - _STARTS
_LEAST_HAZARD = 1e-4


_BUDGETS = (16, 32, 64, 96, 128)
_STOPS_BY_BUDGET = (1.7, 1.45, 1.3, 1.2, 1.09)
"""How much more often verification stops in one forward of so many tokens, chains that end included: what fits the
tokens per forward in benchmarks/results/router_budgets.json, over all qualities of drafts."""
_MOST_SPECULATING = 16
"""Requests up to which speculation in one forward is weighed; with more, deciding would take too long."""


def _drafts_per_segment(number: int) -> Array:
    """Return how many of the first `number` drafts of a block lie in each segment [S]."""
    return np.clip(number + 1 - _STARTS, 0, _FULL).astype(np.float64)


_SEGMENTS = np.stack([_drafts_per_segment(number) for number in range(64)])
"""The same by number [64, S]."""


def _most_tokens(choice: Choice) -> int:
    """Return the tokens that a verification emits at most: in one forward, half the budget drafts the next block."""
    return choice.block_length if choice.budget is None else max(min(choice.budget // 2, choice.block_length), 1)


class YieldModel:
    """Learns from finished blocks."""

    _SHARED_FADE = 0.998
    """What a block leaves of the weight of those before it that reached as far, for what all requests share."""
    _REQUEST_FADE = 0.97
    """The same for the difficulty of a request."""
    _HALF_LIFE_S = 60.0
    """Seconds of decode steps after which half of what was learned is forgotten, so that what is never tried is doubted
    again."""
    _REQUEST_HALF_LIFE_S = 20.0
    _DOUBTED_S = 360.0
    """Seconds that new weights count as."""
    _FIRST_GUESS = 0.3
    """The hazard of the first draft, before any was seen. That of later ones is guessed to be that of those before."""
    _GUESS_WEIGHT = 4.0
    """Drafts of each segment that a guess is worth."""
    _ENOUGH = 16.0
    """Drafts of a segment after which what all requests show of it is believed."""
    _IN_ONE_WEIGHT = 0.25
    """What a draft in one forward says of drafts in turn, over one of these."""
    _IN_TURN_WEIGHT, _IN_ONE_FORWARD_WEIGHT = 400.0, 40.0
    """Blocks of a choice that what all choices say of it is worth: much where drafts are made in turn, since widths
    share them, and less for speculation in one forward."""
    _HOPE = 0.8
    """By what part a choice might yield more than is known, over the square root of its blocks and of what the guess of
    it is worth."""
    _VARIANCE_GUESS = 0.5
    """The variance of difficulties before any were compared."""
    _VARIANCE_WEIGHT = 2.0
    """What this guess weighs: wrong drafts that two blocks are expected to have, multiplied."""
    _VARIANCES = (0.02, 2.0)
    _LEVEL_RATE = 1 / 32
    """By what part hazards change with each request that ended, for each unit that its difficulty is off 1."""
    _MOST_DIFFICULT = 3.0
    """Difficulties count up to this in that."""

    def __init__(self, choices: Sequence[Choice], capacity: int) -> None:
        """Prepare for `choices`, all of blocks, and requests in slots up to `capacity`."""
        self.choices = tuple(choices)
        self._index = {choice: k for k, choice in enumerate(self.choices)}
        self._most = np.array([_most_tokens(choice) for choice in self.choices], dtype=np.int64)
        self._lengths = _SEGMENTS[self._most - 1]  # [K, S]
        budgets = [choice.budget for choice in self.choices]
        self._speculates = np.array([budget is not None for budget in budgets], dtype=np.bool_)
        self._factor = np.array(
            [1.0 if budget is None else np.interp(budget, _BUDGETS, _STOPS_BY_BUDGET) for budget in budgets]
        )
        self._model_weight = np.where(self._speculates, self._IN_ONE_FORWARD_WEIGHT, self._IN_TURN_WEIGHT)
        self._is_diffusion = np.array([choice.mode is Mode.DIFFUSION for choice in choices], dtype=np.bool_)
        diffused = [float(choice.block_length) for choice in choices if choice.mode is Mode.DIFFUSION]
        self._whole = np.array(diffused)[:, None]
        # Of each request: wrong drafts, and drafts that were tried, by segment.
        self._wrong, self._tried = np.zeros(capacity), np.zeros((capacity, len(_ENDS)))
        # Of all, drafted in turn and in one forward: the same by segment, each tried draft weighted by how difficult
        # its request is, and by how much more often its choice stops.
        self._all_wrong, self._all_tried = np.zeros((2, 2, len(_ENDS)))
        self._level = 0.0
        """The logarithm by which the tried drafts of segments are to count more, where there is news of them."""
        # How blocks of a request deviate together, over what they would if difficulties varied by 1.
        self._together, self._scale = 0.0, 0.0
        # By choice: blocks and, of those that verified, the tokens that they emitted and were thought to; and what a
        # block of a request that nothing is known about is thought to.
        self._num_blocks, self._emitted, self._thought = np.zeros((3, len(self.choices)))
        self._usual = np.ones(len(self.choices))
        self._forwards, self._blocks = np.where(self._speculates, 1.0, 2.0), np.ones(len(self.choices))
        self._take_up()

    def forget(self, slot: int) -> None:
        """Make `slot` ready for another request.

        The one before moves all hazards a little: difficulties must be 1 on average, or they could rise as these sink.
        """
        difficulty = float(self._difficulty(np.array([slot]))[0])
        self._level += self._LEVEL_RATE * (1 - min(difficulty, self._MOST_DIFFICULT))
        self._wrong[slot] = self._tried[slot] = 0

    def fade(self, seconds: float) -> None:
        """Let so many seconds pass, and take up what was observed."""
        left = 0.5 ** (seconds / self._HALF_LIFE_S)
        for learned in (self._all_wrong, self._all_tried, self._num_blocks, self._emitted, self._thought):
            learned *= left
        self._together *= left
        self._scale *= left
        left = 0.5 ** (seconds / self._REQUEST_HALF_LIFE_S)
        self._wrong *= left
        self._tried *= left
        self._take_up()

    def doubt(self) -> None:
        """Forget most of what was learned: it was of other weights."""
        self.fade(self._DOUBTED_S)

    def observe(self, slots: Sequence[int], blocks: Sequence[Evidence]) -> None:
        """Learn from finished blocks, each of the request in one of `slots`."""
        kinds = [self._index.get(block.choice, -1) for block in blocks]
        known = [i for i, kind in enumerate(kinds) if kind >= 0]
        if not known:
            return
        of_choice = np.array([kinds[i] for i in known])
        forwards = [blocks[i].num_forwards for i in known]
        number = np.bincount(of_choice, minlength=len(self.choices))
        left = self._SHARED_FADE**number
        self._num_blocks = left * self._num_blocks + number
        self._blocks = left * self._blocks + number
        self._forwards = left * self._forwards + np.bincount(of_choice, forwards, len(self.choices))
        drafted = [n for n, i in enumerate(known) if blocks[i].choice.mode is Mode.SELF_SPECULATION]
        if drafted:
            at = [known[n] for n in drafted]
            self._learn_drafts(of_choice[drafted], np.array([slots[i] for i in at]), [blocks[i] for i in at])

    def expected(self, slots: Integers, remaining: Array) -> Array:
        """Return the tokens per forward [K, B] of the requests in `slots` [B] that want `remaining` [B] more tokens."""
        return self._per_forward(self._difficulty(slots)[:, None] * self._hazard, remaining)

    def hopeful(self, slots: Integers, remaining: Array) -> Array:
        """Return as many as there would be if drafting were as easy as is still likely: what a trial could show.

        What is in doubt is how difficult each request is, each position for all of them, and each choice.
        """
        doubt = np.sqrt(1 / (1 / self._variance + self._wrong[slots])[:, None] + self._uncertainty**2)
        hazard = self._difficulty(slots)[:, None] * self._hazard
        hope = 1 + self._HOPE / np.sqrt(self._num_blocks + self._model_weight)
        hoped = self._per_forward(hazard * np.maximum(1 - 1.3 * doubt, 0.05), remaining)
        return np.asarray(hope[:, None] * hoped)

    def usual(self) -> Array:
        """Return the tokens per forward [K] of a request that nothing is known about."""
        return np.asarray(self._per_forward(self._hazard[None], np.full(1, np.inf))[:, 0])

    def forwards_per_block(self, k: int) -> float:
        """Return how many forwards a block of choice `k` takes."""
        return float(self._forwards[k] / self._blocks[k])

    def _difficulty(self, slots: Integers) -> Array:
        """Return by what the hazards of each request are multiplied [B]: the mean of its gamma posterior."""
        expected_wrong = self._tried[slots] @ self._hazard
        return np.asarray((1 / self._variance + self._wrong[slots]) / (1 / self._variance + expected_wrong))

    def _per_forward(self, hazard: Array, remaining: Array) -> Array:
        may_speculate = len(hazard) <= _MOST_SPECULATING
        tokens = self._per_block(hazard, may_speculate) * self._correction[:, None]
        tokens[self._is_diffusion] = self._whole
        if not may_speculate:
            tokens[self._speculates] = 0  # left out
        return np.asarray(np.minimum(tokens, np.maximum(remaining, 1)) / (self._forwards / self._blocks)[:, None])

    def _per_block(self, hazard: Array, may_speculate: bool = True) -> Array:
        """Return the tokens of a verified block [K, B] where drafts are wrong with `hazard` [B, S].

        Where not `may_speculate` those of speculation in one forward are not worked out.
        """
        speculates = self._speculates
        if not speculates.any():
            return _tokens(hazard, self._lengths)
        found = np.ones((len(speculates), len(hazard)))
        found[~speculates] = _tokens(hazard, self._lengths[~speculates])
        if may_speculate:
            found[speculates] = _tokens(self._factor[speculates, None, None] * hazard, self._lengths[speculates])
        return found

    def _learn_drafts(self, kinds: Integers, slots: Integers, blocks: Sequence[Evidence]) -> None:
        """Learn from N blocks that were verified, of these choices [N] and of the requests in `slots` [N]."""
        num_emitted = np.array([block.num_emitted for block in blocks])
        self._learn_yields(kinds, slots, num_emitted)
        with_draft = np.array([block.has_draft for block in blocks])
        if not with_draft.any():
            return
        kinds, slots, num_right = kinds[with_draft], slots[with_draft], np.maximum(num_emitted[with_draft] - 1, 0)
        is_cut = np.array([block.is_cut for block in blocks])[with_draft]
        is_wrong = (~is_cut & (num_right + 1 < self._most[kinds])).astype(np.int64)
        right, up_to_wrong = _SEGMENTS[num_right], _SEGMENTS[num_right + is_wrong]
        # A draft that is wrong was exposed to its hazard for half its time.
        tried, factor = (right + up_to_wrong) / 2, self._factor[kinds]
        difficulty, expected = self._difficulty(slots), factor * (tried @ self._hazard)
        # Blocks of one request are wrong more or less often together, by as much as difficulties vary.
        expected_before = self._tried[slots] @ self._hazard
        fade = self._SHARED_FADE ** len(kinds)
        self._together = fade * self._together + float((is_wrong - expected) @ (self._wrong[slots] - expected_before))
        self._scale = fade * self._scale + float(expected @ expected_before)
        left = self._REQUEST_FADE ** np.bincount(slots, minlength=len(self._wrong))
        self._wrong *= left
        self._tried *= left[:, None]
        np.add.at(self._wrong, slots, is_wrong)
        np.add.at(self._tried, slots, factor[:, None] * tried)
        in_one = self._speculates[kinds].astype(np.int64)
        seen = np.zeros(self._all_tried.shape)
        np.add.at(seen, in_one, tried > 0)
        left_of_all = self._SHARED_FADE**seen
        self._all_wrong *= left_of_all
        self._all_tried *= np.where(seen.any(axis=0), math.exp(self._level), 1.0) * left_of_all
        self._level = 0.0
        np.add.at(self._all_tried, in_one, (factor * difficulty)[:, None] * tried)
        np.add.at(self._all_wrong, in_one, up_to_wrong - right)

    def _learn_yields(self, kinds: Integers, slots: Integers, num_emitted: Integers) -> None:
        """Learn what N blocks emitted [N], and what was thought that they would."""
        hazard = (self._factor[kinds] * self._difficulty(slots))[:, None] * self._hazard
        thought = _tokens(hazard[:, None], self._lengths[kinds])[:, 0]
        number = len(self.choices)
        left = self._SHARED_FADE ** np.bincount(kinds, minlength=number)
        self._emitted = left * self._emitted + np.bincount(kinds, num_emitted, number)
        self._thought = left * self._thought + np.bincount(kinds, thought, number)

    def _take_up(self) -> None:
        """Take up what was observed of all requests.

        Sets `_hazard` and `_uncertainty`, each [S]; the `_variance` of difficulties; and `_correction` [K], by how much
        more than all these say choices yield.
        """
        self._hazard, self._uncertainty = self._learned_hazards()
        usual = self._per_block(self._hazard[None])[:, 0]
        self._thought *= usual / self._usual  # as it would be thought of now
        self._usual = usual
        weight_of_usual = self._model_weight * usual
        self._correction = (self._emitted + weight_of_usual) / (self._thought + weight_of_usual)
        prior = self._VARIANCE_WEIGHT
        variance = (self._together + prior * self._VARIANCE_GUESS) / (self._scale + prior)
        self._variance = min(max(variance, self._VARIANCES[0]), self._VARIANCES[1])

    def _learned_hazards(self) -> tuple[Array, Array]:
        """Return the hazard of each segment [S], and by what part it may be wrong [S]."""
        (wrong, wrong_in_one), (tried, tried_in_one) = self._all_wrong.tolist(), self._all_tried.tolist()
        hazards, doubts, guess, weight = [], [], self._FIRST_GUESS, self._GUESS_WEIGHT
        # Rows of one forward stop where their chains end, too, which nobody here knows: so only how often they stop
        # says something, and not where.
        stops = (sum(wrong_in_one) + weight * guess) / (sum(tried_in_one) + weight)
        for segment in range(len(_ENDS)):
            # Gamma posteriors, whose deviation over their mean is 1 / sqrt(shape).
            weight_in_one = self._IN_ONE_WEIGHT * tried_in_one[segment]
            guess = (weight_in_one * stops + weight * guess) / (weight_in_one + weight)
            shape = wrong[segment] + weight * guess
            guess = shape / (tried[segment] + weight)
            hazards.append(guess)
            doubts.append(shape**-0.5 if tried[segment] < self._ENOUGH else 0.0)
        return np.array(hazards), np.array(doubts)


def _tokens(hazard: Array, lengths: Array) -> Array:
    """Return the tokens [K, B] of blocks with `lengths` [K, S] drafts by segment, wrong with `hazard` [(K,) B, S]."""
    log = -np.maximum(hazard, _LEAST_HAZARD)
    whole = log * _FULL
    reached = np.exp(np.cumsum(whole, axis=-1) - whole)
    chance = np.exp(log)
    # In a segment that n drafts reach into, they yield p + p^2 + ... + p^n for each block that reaches it.
    series = chance / (1 - chance) * -np.expm1(log * lengths[:, None, :])  # [K, B, S]
    return np.asarray(1 + (reached * series).sum(axis=2))
