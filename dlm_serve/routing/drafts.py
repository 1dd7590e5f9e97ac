"""How likely drafts are wrong: by their position, which all requests share, and by request.

A verification of a block emits one token and, behind it, each draft up to the first that is wrong. How likely a draft
is wrong, if those before it are right, depends on its position and on the request: code is easier than prose. So each
request has a difficulty, by which the hazard of every position is multiplied. This is the frailty model of survival
analysis, with gamma-distributed difficulties of mean 1: their estimates have a closed form, a block that was cut short
says nothing about later positions, and what blocks of one length show serves for those of others. Answers may go on
otherwise than they began, repeating themselves, say; and easy and hard places in one answer look like an easy and a
hard request. So requests are remembered for long or briefly, and what they have shown is believed in full or less; what
has predicted the blocks of all best is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dlm_serve.routing.batch import Array, Integers, Mask

_ENDS = np.array([2, 4, 8, 16, 32, 64])
"""Drafts 1, 2 to 3, 4 to 7, ... 32 to 63 share a hazard: segment s ends before `_ENDS[s]`."""
_STARTS = np.array([1, 2, 4, 8, 16, 32])
_FULL = _ENDS - _STARTS
_LEAST_HAZARD = 1e-4

SHARED_FADE = 0.998
"""What a block leaves of the weight of those before it, for what all requests share."""
REQUEST_FADES = np.array([0.97, 0.8])
"""The same, for what is known of its request: where answers go on as they began, and where they do not."""
HALF_LIFE_S = 60.0
"""Seconds of decode steps after which half of what was learned is forgotten, so that what is never tried is doubted
again."""


def _drafts_per_segment(number: int) -> Array:
    """Return how many of the first `number` drafts of a block lie in each segment [S]."""
    return np.clip(number + 1 - _STARTS, 0, _FULL).astype(np.float64)


SEGMENTS = np.stack([_drafts_per_segment(number) for number in range(64)])
"""The same by number [64, S]."""


class DraftModel:
    """Learns hazards and difficulties from blocks that were verified."""

    _REQUEST_HALF_LIFE_S = 20.0
    _FIRST_GUESS = 0.3
    """The hazard of the first draft, before any was seen. That of later ones is guessed to be that of those before."""
    _GUESS_WEIGHT = 4.0
    """Drafts of each segment that a guess is worth."""
    _ENOUGH = 16.0
    """Drafts of a segment after which what all requests show of it is believed."""
    _IN_ONE_WEIGHT = 0.25
    """What a draft in one forward says of drafts in turn, over one of these."""
    _VARIANCE_GUESS = 0.5
    """The variance of difficulties before any were compared."""
    _VARIANCE_WEIGHT = 2.0
    """What this guess weighs: wrong drafts that two blocks are expected to have, multiplied."""
    _VARIANCES = (0.02, 2.0)
    """Bounds of what blocks say it is."""
    _BELIEFS = np.array([1.0, 0.25])
    """Factors on that, of which the best at predicting is used: some recorded answers are predicted best with a quarter
    of it."""
    _LEVEL_RATE = 1 / 32
    """By what part hazards change with each request that ended, for each unit that its difficulty is off 1."""
    _MOST_DIFFICULT = 3.0
    """Difficulties count up to this in that."""

    def __init__(self, capacity: int) -> None:
        """Prepare for requests in slots up to `capacity`."""
        size = (len(REQUEST_FADES), capacity)
        # By memory and request: wrong drafts, and drafts that were tried, by segment.
        self._wrong, self._tried = np.zeros(size), np.zeros((*size, len(_ENDS)))
        # How likely each belief and memory took it that drafts are as they turned out to be.
        self._log_likelihood = np.zeros((len(self._BELIEFS), len(REQUEST_FADES)))
        # Of all, drafted in turn and in one forward: the same by segment, each tried draft weighted by how difficult
        # its request is, and by how much more often its choice stops.
        self._all_wrong, self._all_tried = np.zeros((2, 2, len(_ENDS)))
        self._level = 0.0
        """The logarithm by which the tried drafts of segments are to count more, where there is news of them."""
        # How blocks of a request deviate together, over what they would if difficulties varied by 1.
        self._together, self._scale = 0.0, 0.0
        self.take_up()

    def forget(self, slots: Sequence[int]) -> None:
        """Make `slots` ready for other requests.

        Those before move all hazards a little: difficulties must be 1 on average, or they could rise as these sink.
        """
        at = np.array(slots, dtype=np.int64)
        difficulty = np.minimum(self.difficulty(at), self._MOST_DIFFICULT)
        self._level += self._LEVEL_RATE * float((1 - difficulty).sum())
        self._wrong[:, at] = self._tried[:, at] = 0

    def fade(self, seconds: float) -> None:
        """Let so many seconds pass."""
        left = 0.5 ** (seconds / HALF_LIFE_S)
        self._all_wrong *= left
        self._all_tried *= left
        self._together *= left
        self._scale *= left
        self._log_likelihood *= left
        left = 0.5 ** (seconds / self._REQUEST_HALF_LIFE_S)
        self._wrong *= left
        self._tried *= left

    def difficulty(self, slots: Integers) -> Array:
        """Return by what the hazards of each request are multiplied [B]: the mean of its gamma posterior."""
        belief, memory = self._best
        return self._difficulty(belief, memory, slots)

    @property
    def memory(self) -> int:
        """Return which of `REQUEST_FADES` has predicted blocks best."""
        return self._best[1]

    @property
    def variance(self) -> float:
        """Return the variance of difficulties that is used."""
        return self._best[0] * self._variance

    def uncertainty(self, slots: Integers) -> Array:
        """Return by what part the hazard of each request in each segment may be wrong [B, S].

        Less belief does not make it surer: requests may still differ as much as blocks say.
        """
        return np.asarray(
            np.sqrt(1 / (1 / self._variance + self._wrong[self.memory, slots])[:, None] + self._uncertainty**2)
        )

    def learn(self, slots: Integers, num_right: Integers, is_wrong: Integers, factor: Array, in_one: Integers) -> None:
        """Learn from N verified blocks, each of the request in one of `slots`.

        Of each, `num_right` drafts were right before one that `is_wrong`, 0 or 1. Its choice stops more often by
        `factor`, and `in_one` is 1 where it drafts and verifies in one forward. All are [N].
        """
        right, up_to_wrong = SEGMENTS[num_right], SEGMENTS[num_right + is_wrong]
        # A draft that is wrong was exposed to its hazard for half its time.
        tried = (right + up_to_wrong) / 2
        difficulty = self.difficulty(slots)
        self._learn_difficulties(slots, is_wrong, factor[:, None] * tried)
        seen = _sums_by(in_one, tried > 0, 2)
        left = SHARED_FADE**seen
        self._all_wrong *= left
        self._all_tried *= np.where(seen.any(axis=0), math.exp(self._level), 1.0) * left
        self._level = 0.0
        self._all_tried += _sums_by(in_one, (factor * difficulty)[:, None] * tried, 2)
        self._all_wrong += _sums_by(in_one, up_to_wrong - right, 2)

    @property
    def _best(self) -> tuple[float, int]:
        """Return the belief and the memory that have predicted blocks best."""
        belief, memory = divmod(int(self._log_likelihood.argmax()), len(REQUEST_FADES))
        return float(self._BELIEFS[belief]), memory

    def _difficulty(self, belief: float | Array, memory: int | slice, slots: Integers) -> Array:
        """Return the difficulty of each request [B]; [L, M, B] for L beliefs [L, 1, 1] and a slice of M memories."""
        weight = 1 / (belief * self._variance)
        expected_wrong = self._tried[memory, slots] @ self.hazard
        return np.asarray((weight + self._wrong[memory, slots]) / (weight + expected_wrong))

    def _learn_difficulties(self, slots: Integers, is_wrong: Integers, tried: Array) -> None:
        """Learn how often blocks were wrong [N], of so many drafts by segment [N, S]."""
        expected, expected_before = tried @ self.hazard, self._tried[0, slots] @ self.hazard
        # Blocks of one request are wrong more or less often together, by as much as difficulties vary.
        fade, capacity = SHARED_FADE ** len(slots), self._wrong.shape[1]
        deviation_before = self._wrong[0, slots] - expected_before
        self._together = fade * self._together + float((is_wrong - expected) @ deviation_before)
        self._scale = fade * self._scale + float(expected @ expected_before)
        difficulties = self._difficulty(self._BELIEFS[:, None, None], slice(None), slots)
        likelihood = (is_wrong * np.log(difficulties) - difficulties * expected).sum(axis=2)
        self._log_likelihood = fade * self._log_likelihood + likelihood
        left = REQUEST_FADES[:, None] ** np.bincount(slots, minlength=capacity)
        self._wrong = left * self._wrong + np.bincount(slots, is_wrong, capacity)
        self._tried = left[..., None] * self._tried + _sums_by(slots, tried, capacity)

    def take_up(self) -> None:
        """Take up what was learned: set `hazard` [S], how uncertain it is, and the variance of difficulties."""
        (wrong, wrong_in_one), (tried, tried_in_one) = self._all_wrong.tolist(), self._all_tried.tolist()
        hazards, uncertainties, guess, weight = [], [], self._FIRST_GUESS, self._GUESS_WEIGHT
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
            uncertainties.append(shape**-0.5 if tried[segment] < self._ENOUGH else 0.0)
        self.hazard: Array = np.array(hazards)
        self._uncertainty: Array = np.array(uncertainties)
        prior = self._VARIANCE_WEIGHT
        variance = (self._together + prior * self._VARIANCE_GUESS) / (self._scale + prior)
        self._variance = min(max(variance, self._VARIANCES[0]), self._VARIANCES[1])


def _sums_by(keys: Integers, values: Array | Mask, number: int) -> Array:
    """Return the sums [number, S] of those of `values` [N, S] with the same one of `keys` [N]."""
    width = values.shape[1]
    places = keys[:, None] * width + np.arange(width)
    # np.add.at takes four times as long with rows.
    return np.asarray(np.bincount(places.ravel(), values.ravel(), number * width).reshape(number, width))


def tokens_per_block(hazard: Array, lengths: Array) -> Array:
    """Return the tokens [K, B] of blocks with `lengths` [K, S] drafts by segment, wrong with `hazard` [(K,) B, S]."""
    log = -np.maximum(hazard, _LEAST_HAZARD)
    whole = log * _FULL
    reached = np.exp(np.cumsum(whole, axis=-1) - whole)
    chance = np.exp(log)
    # In a segment that n drafts reach into, they yield p + p^2 + ... + p^n for each block that reaches it.
    series = chance / (1 - chance) * -np.expm1(log * lengths[:, None, :])  # [K, B, S]
    return np.asarray(1 + (reached * series).sum(axis=2))
