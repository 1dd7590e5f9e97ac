"""The policy of fixed rules, for those who want to know beforehand how a request decodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlm_serve.decoding import Choice, Mode
from dlm_serve.routing.batch import AUTOREGRESSIVE, RunningBatch, RunningRequest
from dlm_serve.routing.costs import CostTable
from dlm_serve.routing.policy import Outcome, Policy
from dlm_serve.routing.prefills import Interruptions
from dlm_serve.routing.trials import Passed


class RulesPolicy(Policy):
    """Decodes short answers autoregressively, and all of them while many requests run; others in their longest blocks.

    Blocks are denoised where a request permits diffusion and does not stream, else drafted.
    """

    name = "rules"

    def __init__(self, choices: Sequence[Choice], short_answer: int, most_in_blocks: int) -> None:
        """Answers of fewer than `short_answer` tokens are short; more than `most_in_blocks` requests are many."""
        super().__init__(choices)
        self._short_answer = short_answer
        self._most_in_blocks = most_in_blocks

    def choose(self, batch: RunningBatch, table: CostTable, interruptions: Interruptions, passed: Passed) -> Outcome:
        """See `Policy`."""
        is_crowded = batch.num_requests > self._most_in_blocks
        kinds = [AUTOREGRESSIVE if is_crowded else self._kind_of(request) for request in batch.free]
        first = None if is_crowded else self._longest(Mode.SELF_SPECULATION)
        return Outcome(np.array(kinds), None if first is None else self.choices[first])

    def _kind_of(self, request: RunningRequest) -> int:
        if request.answer_length < self._short_answer:
            return AUTOREGRESSIVE
        modes = (Mode.SELF_SPECULATION,) if request.state.is_streaming else (Mode.DIFFUSION, Mode.SELF_SPECULATION)
        longest = (self._longest(mode, request) for mode in modes)
        return next((kind for kind in longest if kind is not None), AUTOREGRESSIVE)

    def _longest(self, mode: Mode, request: RunningRequest | None = None) -> int | None:
        """Return the choice of `mode` with the longest blocks that `request`, if any, permits; None without one."""
        found = (
            kind
            for kind, choice in enumerate(self.choices)
            if choice.mode is mode and (request is None or request.state.settings_of(choice) is not None)
        )
        return max(found, default=None)
