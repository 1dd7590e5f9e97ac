"""What blocks emitted, compared with what was thought of them: by choice, and by request."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlm_serve.routing.batch import Array, Integers, Mask
from dlm_serve.routing.drafts import REQUEST_FADES, SHARED_FADE

_LEAST_ACCEPTED = 0.01
"""Drafts that a block is thought to accept, at least: what it accepts is divided by this."""


class ByChoice:
    """By what factor blocks of each choice emit more than is thought."""

    def __init__(self, are_alike: Mask) -> None:
        """Prepare for choices of which nothing is known; what is thought of those that `are_alike` [K] errs alike."""
        self._are_alike = are_alike
        self._emitted, self._thought = np.zeros((2, len(are_alike)))

    def fade(self, left: float) -> None:
        """Leave so much of what was learned."""
        self._emitted *= left
        self._thought *= left

    def learn(self, kinds: Integers, emitted: Integers, thought: Array) -> None:
        """Learn what N blocks of these choices [N] emitted [N], and were thought to."""
        number = len(self._emitted)
        left = SHARED_FADE ** np.bincount(kinds, minlength=number)
        self._emitted = left * self._emitted + np.bincount(kinds, emitted, number)
        self._thought = left * self._thought + np.bincount(kinds, thought, number)

    def think_anew(self, factor: Array) -> None:
        """Take it that more by `factor` [K] would be thought of what was observed, as it would be now."""
        self._thought *= factor

    def factor(self, weight: Array) -> Array:
        """Return the factors [K], where what is thought counts as so many tokens [K].

        Choices that are alike start from the factor of all of these.
        """
        alike, guess = self._are_alike, np.ones(len(weight))
        if alike.any():
            mean_weight = weight[alike].mean()
            guess[alike] = (self._emitted[alike].sum() + mean_weight) / (self._thought[alike].sum() + mean_weight)
        return np.asarray((self._emitted + weight * guess) / (self._thought + weight))


class ByRequest:
    """By what factor more drafts of each request are accepted than is thought.

    What is thought of a request rests on all of them, and a hard one is not just an easy one with more of everything:
    where both come, the late drafts that are seen are those of easy ones. How far the blocks of a request itself are
    believed is Bühlmann's credibility: what is thought weighs as many blocks as the variance between blocks of one
    request exceeds that between requests. Both are learned.
    """

    _BETWEEN_BLOCKS, _BETWEEN_REQUESTS = 1.0, 0.1
    """Guesses of both, over the square of what is thought,"""
    _GUESS_WEIGHT = 30.0
    """and what they weigh: the squares of what is thought of so many blocks, each of one draft."""
    _LEAST_WEIGHT, _MOST_WEIGHT = 4.0, 1000.0
    """Blocks that what is thought may weigh."""

    def __init__(self, capacity: int) -> None:
        """Prepare for requests in slots up to `capacity`."""
        # By memory and slot: blocks, and drafts that were accepted in them, and thought to be.
        self._of_requests = np.zeros((3, len(REQUEST_FADES), capacity))
        self._num_blocks, self._accepted, self._thought = self._of_requests
        # How blocks deviate from what is thought, squared, and multiplied with how those before them of their request
        # did; and the same of what is thought.
        self._deviation, self._square, self._together, self._product = np.zeros(4)

    def forget(self, slots: Sequence[int]) -> None:
        """Make `slots` ready for other requests."""
        self._of_requests[..., slots] = 0

    def learn(self, slots: Integers, accepted: Integers, thought: Array) -> None:
        """Learn how many drafts N blocks accepted [N], each of the request in one of `slots`, and were thought to."""
        thought = np.maximum(thought, _LEAST_ACCEPTED)
        deviation, thought_before = accepted - thought, self._thought[0, slots]
        left = SHARED_FADE ** len(slots)
        self._deviation = left * self._deviation + float(deviation @ deviation)
        self._square = left * self._square + float(thought @ thought)
        self._together = left * self._together + float(deviation @ (self._accepted[0, slots] - thought_before))
        self._product = left * self._product + float(thought @ thought_before)
        capacity = self._num_blocks.shape[1]
        number = np.bincount(slots, minlength=capacity)
        self._of_requests *= REQUEST_FADES[:, None] ** number
        self._num_blocks += number
        self._accepted += np.bincount(slots, accepted, capacity)
        self._thought += np.bincount(slots, thought, capacity)

    def factor(self, slots: Integers, memory: int) -> Array:
        """Return the factors of the requests in `slots` [B]; 1 of one that has shown nothing.

        What they have shown fades as one of `REQUEST_FADES` says.
        """
        num, weight = self._num_blocks[memory, slots], self.weight
        ratio = self._accepted[memory, slots] / np.maximum(self._thought[memory, slots], _LEAST_ACCEPTED)
        return np.asarray((num * ratio + weight) / (num + weight))

    @property
    def weight(self) -> float:
        """Return how many blocks of a request what is thought of it weighs."""
        guess = self._GUESS_WEIGHT
        between_blocks = (self._deviation + guess * self._BETWEEN_BLOCKS) / (self._square + guess)
        between_requests = (self._together + guess * self._BETWEEN_REQUESTS) / (self._product + guess)
        return max(between_blocks / max(between_requests, between_blocks / self._MOST_WEIGHT), self._LEAST_WEIGHT)
