"""Drafts verified by windows, which is no block step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dlm_serve.decoding import Commit, RequestState, Rows, StepOutput
from dlm_serve.decoding.commit.draft_windows import draft_windows, keeping_last, verify
from dlm_serve.sglang.engine.block_step import BlockStep
from dlm_serve.sglang.protocols import ModelRunnerLike


class DraftWindows:
    """Runs windows eagerly, in shapes of their own."""

    def __init__(self, step: BlockStep, model_runner: ModelRunnerLike, commit: Commit, mask_token_id: int) -> None:
        self._step = step
        self._model_runner = model_runner
        self._table: Rows = step.table
        self._commit = commit
        self._mask_token_id = mask_token_id

    def verify(self, states: Sequence[RequestState], indices: torch.Tensor, committed_lens: torch.Tensor) -> StepOutput:
        """Run one forward over the windows of all drafts of the requests `states`; return what they emit.

        Requests that have no draft yet get their first and emit nothing.
        """
        number = max(state.current.block_length for state in states)
        rows = self._table.gather(indices)
        # No graph says when the slot table is read: the scheduler waits for the whole forward.
        self._model_runner.shared_read_done_event = None
        each = torch.arange(len(states), device=indices.device).repeat_interleave(number)
        width = self._commit.row_width(number)
        tried = draft_windows(rows, number, width, self._mask_token_id)
        spec = self._commit.attention_spec(tried, committed_lens[each], self._mask_token_id)
        spec = keeping_last(spec, rows, number)
        _, prediction = self._step.run(tried, indices[each], spec)
        after, output = verify(rows, prediction.ids.view(-1, number, width), self._mask_token_id)
        self._table.scatter_(indices, after)
        return output
