"""What fused commits need beside block steps: the first run inside the EXTEND call, and drafts verified by windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from dlm_serve.decoding import Emission, Policy, Prediction, Rows, Sampling, advance, carry, layout
from dlm_serve.decoding.hypotheses import hypotheses, keeping_last, start_draft, verify
from dlm_serve.engine.block_step import BlockStep
from dlm_serve.engine.first_block import note_rest
from dlm_serve.engine.requests import FirstBlock, last_window_of, record_of


class Draw(Protocol):
    """Exchanges the predictions of rows from positions `starts` [B] for tokens sampled as their requests ask."""

    def __call__(
        self,
        reqs: Sequence[Any],
        rows: Rows,
        starts: torch.Tensor,
        predicted: tuple[torch.Tensor, Prediction],
        sampling: Sampling,
    ) -> Prediction: ...


class Windows:
    """Forwards over windows that are no block step: eager, in shapes of their own."""

    def __init__(self, step: BlockStep, model_runner: Any, policy: Policy, draw: Draw) -> None:
        self._step = step
        self._model_runner = model_runner
        self._table = step.table
        self._mask_token_id = step.mask_token_id
        self._policy = policy
        self._draw = draw

    def start(
        self, reqs: Sequence[Any], indices: torch.Tensor, blocks: Sequence[FirstBlock], sampling: Sampling
    ) -> torch.Tensor:
        """Take the first run of each of `reqs`, which keeps no KV; returns the next token of each [N].

        The other tokens of the runs stay in the table.
        """
        pending, runs = self._first_runs(reqs, indices, blocks, sampling)
        note_rest(reqs, self._table.gather(indices), pending, self._policy)
        for req, block, run in zip(reqs, blocks, runs, strict=True):
            record_of(req).first_run = range(block.start, block.start + len(run))
        # What was accepted before has KV: a run that starts over and differs from it gives way to the next one.
        found = enumerate(zip(blocks, runs, strict=True))
        changed = [i for i, (block, run) in found if not block.goes_on_as([*block.given, *run])]
        if changed:
            at = torch.tensor(changed, device=indices.device)
            again = [reqs[i] for i in changed]
            pending[at] = self.start(again, indices[at], [last_window_of(req) for req in again], sampling.select(at))
        return pending

    def _first_runs(
        self, reqs: Sequence[Any], indices: torch.Tensor, blocks: Sequence[FirstBlock], sampling: Sampling
    ) -> tuple[torch.Tensor, list[list[int]]]:
        """The next token of each of `reqs` [N], and the tokens that its first run accepts."""
        anchors, starts, num_had = (
            torch.tensor(numbers, device=indices.device)
            for numbers in zip(*((block.emitted[0], block.start, len(block.emitted)) for block in blocks), strict=True)
        )
        width = self._policy.row_width(max(record_of(req).plan.block_length for req in reqs))
        rows = self._table.gather(indices, width).start_block(anchors, self._mask_token_id)
        predicted = self._step.run(rows, indices, starts, layout(rows, self._policy))
        prediction = self._draw(reqs, rows, starts, predicted, sampling)
        for req in reqs:
            record_of(req).extend_forwards += 1
        after, emission = advance(rows, prediction, self._mask_token_id, self._policy)
        after, pending = carry(after, num_had, self._mask_token_id, self._policy)
        self._table.scatter_(indices, after)
        runs = _tokens_of(emission)
        drafting = [i for i, req in enumerate(reqs) if record_of(req).plan.verifies_windows]
        if drafting:
            at = torch.tensor(drafting, device=indices.device)
            self._table.scatter_(indices[at], start_draft(rows, prediction.ids).gather(at))
            verified = self.verify(
                [reqs[i] for i in drafting], indices[at], starts[at], sampling.select(at), kept=False
            )
            self._table.num_emitted[indices[at]] = 1
            pending[at] = verified.tokens[:, 0]
            for i, run in zip(drafting, _tokens_of(verified), strict=True):
                runs[i] = run
        return pending, runs

    def verify(
        self,
        reqs: Sequence[Any],
        indices: torch.Tensor,
        committed: torch.Tensor,
        sampling: Sampling,
        *,
        kept: bool = True,
    ) -> Emission:
        """One forward over the hypotheses of all drafts of `reqs`, and what they emit."""
        records = [record_of(req) for req in reqs]
        number = max(record.plan.block_length for record in records)
        width = self._policy.row_width(number)
        if any(record.is_extended for record in records):
            width += number
        for record in records:
            record.is_extended = not kept
            record.extend_forwards += not kept
        rows = self._table.gather(indices)
        # No graph says when the slot table is read: the scheduler waits for the whole forward.
        self._model_runner.shared_read_done_event = None
        each = torch.arange(len(reqs), device=indices.device).repeat_interleave(number)
        starts = rows.starts(committed)[each]
        tried = hypotheses(rows, number, width, self._mask_token_id)
        entry = layout(tried, self._policy)
        entry = keeping_last(entry, rows, number) if kept else entry.without_kv()
        predicted = self._step.run(tried, indices[each], starts, entry)
        of_each = [req for req in reqs for _ in range(number)]
        ids = self._draw(of_each, tried, starts, predicted, sampling.repeat(number)).ids
        after, emission = verify(rows, ids.view(-1, number, width), self._mask_token_id, kept=kept)
        self._table.scatter_(indices, after)
        return emission


def _tokens_of(emission: Emission) -> list[list[int]]:
    """What each row emits, on the host."""
    return [tokens[:length] for tokens, length in zip(emission.tokens.tolist(), emission.lens.tolist(), strict=True)]
