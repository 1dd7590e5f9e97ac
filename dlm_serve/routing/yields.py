"""How many tokens a forward yields: for each request, and for each way to decode its blocks.

How likely drafts are wrong is in `drafts`. A row that speculates in one forward emits in every forward; it verifies a
draft that was made further behind, or for another stop, and is not as long as it might be. So it stops earlier, by a
factor that was measured for each budget.

All of this leaves out how blocks end with the answer, that its first row may have no draft, and what else models do. So
what each choice yields is taken to be more or less than all this says, by as much as it was so far, and so is what the
drafts of each request add (`compared`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlm_serve.decoding import Choice, Evidence, Mode
from dlm_serve.routing.batch import Array, Integers, Mask
from dlm_serve.routing.compared import ByChoice, ByRequest
from dlm_serve.routing.drafts import HALF_LIFE_S, SEGMENTS, SHARED_FADE, DraftModel, tokens_per_block

_BUDGETS = (16, 32, 64, 96, 128)
_STOPS_BY_BUDGET = (1.7, 1.45, 1.3, 1.2, 1.09)
"""How much more often verification stops in one forward of so many tokens, chains that end included: what fits the
tokens per forward in benchmarks/results/router_budgets.json, over all qualities of drafts."""
_MOST_SPECULATING = 16
"""Requests up to which speculation in one forward is weighed. With more it is hardly faster; in simulation it is then
chosen where it is not, and deciding takes longer."""


def _most_tokens(choice: Choice) -> int:
    """Return the tokens that a verification emits at most: in one forward, half the budget drafts the next block."""
    return choice.block_length if choice.budget is None else max(min(choice.budget // 2, choice.block_length), 1)


class YieldModel:
    """Learns from finished blocks."""

    _IN_TURN_WEIGHT, _IN_ONE_FORWARD_WEIGHT = 250.0, 40.0
    """Blocks of a choice that what all choices say of it is worth: much where drafts are made in turn, since widths
    share them, and less for speculation in one forward."""
    _BY_VARIANCE = 80.0
    """The weight of one forward over the variance of difficulties, where that is more. Few requests show what a choice
    yields, and little of others if they differ. With the variance that is guessed at first both are 40."""
    _HOPE, _HOPE_WEIGHT = 0.8, 40.0
    """By what part a choice might yield more than is known, over the square root of its blocks and so many others: one
    that was never tried might yield an eighth more."""

    def __init__(self, choices: Sequence[Choice], capacity: int) -> None:
        """Prepare for `choices`, all of blocks, and requests in slots up to `capacity`."""
        self.choices = tuple(choices)
        self._index = {choice: k for k, choice in enumerate(self.choices)}
        self._most = np.array([_most_tokens(choice) for choice in self.choices], dtype=np.int64)
        self._lengths = SEGMENTS[self._most - 1]  # [K, S]
        budgets = [choice.budget for choice in self.choices]
        self._speculates = np.array([budget is not None for budget in budgets], dtype=np.bool_)
        self._factor = np.array(
            [1.0 if budget is None else np.interp(budget, _BUDGETS, _STOPS_BY_BUDGET) for budget in budgets]
        )
        self._is_diffusion = np.array([choice.mode is Mode.DIFFUSION for choice in choices], dtype=np.bool_)
        diffused = [float(choice.block_length) for choice in choices if choice.mode is Mode.DIFFUSION]
        self._whole = np.array(diffused)[:, None]
        self._drafts = DraftModel(capacity)
        # Of all blocks that verified, and of those with a draft that no end cut short, which requests are compared by.
        self._of_choices, self._of_whole_blocks = ByChoice(self._speculates), ByChoice(self._speculates)
        self._of_requests = ByRequest(capacity)
        # By choice: blocks, and the tokens that a block of a request that nothing is known about is thought to emit.
        self._num_blocks, self._usual = np.zeros(len(self.choices)), np.ones(len(self.choices))
        self._forwards, self._blocks = np.where(self._speculates, 1.0, 2.0), np.ones(len(self.choices))
        self._take_up()

    def forget(self, slots: Sequence[int]) -> None:
        """Make `slots` ready for other requests."""
        self._drafts.forget(slots)
        self._of_requests.forget(slots)

    def fade(self, seconds: float) -> None:
        """Let so many seconds pass, and take up what was observed."""
        self._drafts.fade(seconds)
        left = 0.5 ** (seconds / HALF_LIFE_S)
        self._num_blocks *= left
        for of_blocks in (self._of_choices, self._of_whole_blocks):
            of_blocks.fade(left)
        self._take_up()

    def observe(self, slots: Sequence[int], blocks: Sequence[Evidence]) -> None:
        """Learn from finished blocks, each of the request in one of `slots`."""
        if not blocks:
            return
        columns = [  # and not rows, a tuple for each block, which would keep the garbage collector busy
            [self._index.get(block.choice, -1) for block in blocks],
            slots,
            [block.num_emitted for block in blocks],
            [block.num_forwards for block in blocks],
            [block.is_cut for block in blocks],
            [block.has_draft for block in blocks],
        ]
        found = np.array(columns, dtype=np.int64)
        kinds, at, num_emitted, num_forwards, is_cut, has_draft = found[:, found[0] >= 0]
        number = np.bincount(kinds, minlength=len(self.choices))
        left = SHARED_FADE**number
        self._num_blocks = left * self._num_blocks + number
        self._blocks = left * self._blocks + number
        self._forwards = left * self._forwards + np.bincount(kinds, num_forwards, len(self.choices))
        drafted = ~self._is_diffusion[kinds]
        if drafted.any():
            self._learn_drafts(*(of[drafted] for of in (kinds, at, num_emitted, is_cut > 0, has_draft > 0)))

    def expected(self, slots: Integers, remaining: Array) -> Array:
        """Return the tokens per forward [K, B] of the requests in `slots` [B] that want `remaining` [B] more tokens."""
        return self._per_forward(*self._known_of(slots), remaining)

    def hopeful(self, slots: Integers, remaining: Array) -> Array:
        """Return as many as there would be if drafting were as easy as is still likely: what a trial could show.

        What is in doubt is how difficult each request is, each position for all of them, and each choice.
        """
        hazard, more_accepted = self._known_of(slots)
        hope = 1 + self._HOPE / np.sqrt(self._num_blocks + self._HOPE_WEIGHT)
        easier = hazard * np.maximum(1 - 1.3 * self._drafts.uncertainty(slots), 0.05)
        hoped = self._per_forward(easier, more_accepted, remaining)
        return np.asarray(hope[:, None] * hoped)

    def usual(self) -> Array:
        """Return the tokens per forward [K] of a request that nothing is known about."""
        return np.asarray(self._per_forward(self._drafts.hazard[None], np.ones(1), np.full(1, np.inf))[:, 0])

    def forwards_per_block(self, k: int) -> float:
        """Return how many forwards a block of choice `k` takes."""
        return float(self._forwards[k] / self._blocks[k])

    def _known_of(self, slots: Integers) -> tuple[Array, Array]:
        """Return what hazards requests have [B, S], and by what factor more of their drafts are accepted [B]."""
        hazard = self._drafts.difficulty(slots)[:, None] * self._drafts.hazard
        return hazard, self._of_requests.factor(slots, self._drafts.memory)

    def _per_forward(self, hazard: Array, more_accepted: Array, remaining: Array) -> Array:
        may_speculate = len(hazard) <= _MOST_SPECULATING
        tokens = self._per_block(hazard, may_speculate) * self._correction[:, None]
        tokens = 1 + np.maximum(tokens - 1, 0) * more_accepted
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
            return tokens_per_block(hazard, self._lengths)
        found = np.ones((len(speculates), len(hazard)))
        found[~speculates] = tokens_per_block(hazard, self._lengths[~speculates])
        if may_speculate:
            found[speculates] = tokens_per_block(
                self._factor[speculates, None, None] * hazard, self._lengths[speculates]
            )
        return found

    def _learn_drafts(
        self, kinds: Integers, slots: Integers, num_emitted: Integers, is_cut: Mask, has_draft: Mask
    ) -> None:
        """Learn from N blocks that were verified: their choices and requests, and what `Evidence` says, each [N]."""
        thought = self._thought_of(kinds, slots)
        self._of_choices.learn(kinds, num_emitted, thought)
        whole = has_draft & ~is_cut
        self._learn_requests(kinds[whole], slots[whole], num_emitted[whole], thought[whole])
        if not has_draft.any():
            return
        kinds, slots, num_right = kinds[has_draft], slots[has_draft], np.maximum(num_emitted[has_draft] - 1, 0)
        is_wrong = (~is_cut[has_draft] & (num_right + 1 < self._most[kinds])).astype(np.int64)
        in_one = self._speculates[kinds].astype(np.int64)
        self._drafts.learn(slots, num_right, is_wrong, self._factor[kinds], in_one)

    def _thought_of(self, kinds: Integers, slots: Integers) -> Array:
        """Return the tokens that N blocks are thought to emit [N], by all but what is compared here."""
        hazard = (self._factor[kinds] * self._drafts.difficulty(slots))[:, None] * self._drafts.hazard
        return np.asarray(tokens_per_block(hazard[:, None], self._lengths[kinds])[:, 0])

    def _learn_requests(self, kinds: Integers, slots: Integers, num_emitted: Integers, thought: Array) -> None:
        """Learn what N whole blocks emitted [N], and were thought to."""
        self._of_whole_blocks.learn(kinds, num_emitted, thought)
        factor = self._of_whole_blocks.factor(self._model_weight * self._usual)
        self._of_requests.learn(slots, num_emitted - 1, factor[kinds] * thought - 1)

    def _take_up(self) -> None:
        """Take up what was observed.

        Set `_model_weight` [K], the blocks that what all choices say of one is worth, and `_correction` [K], by how
        much more than that they yield.
        """
        self._drafts.take_up()
        in_one_forward = max(self._IN_ONE_FORWARD_WEIGHT, self._BY_VARIANCE * self._drafts.variance)
        self._model_weight = np.where(self._speculates, in_one_forward, self._IN_TURN_WEIGHT)
        usual = self._per_block(self._drafts.hazard[None])[:, 0]
        for of_blocks in (self._of_choices, self._of_whole_blocks):
            of_blocks.think_anew(usual / self._usual)
        self._usual = usual
        self._correction = self._of_choices.factor(self._model_weight * usual)
