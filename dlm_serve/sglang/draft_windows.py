"""Windows that are no block step: the first run inside the EXTEND call, and drafts verified by windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dlm_serve.decoding import Commit, FirstBlock, RequestState, Rows, StepOutput, TokenChoice
from dlm_serve.decoding.commit.draft_windows import draft_windows, keeping_last, start_draft, verify
from dlm_serve.decoding.commit.window import last_window, verifies_drafts
from dlm_serve.sglang.agreement import agree_on
from dlm_serve.sglang.block_step import BlockStep
from dlm_serve.sglang.first_block import note_rest
from dlm_serve.sglang.protocols import ModelRunnerLike, ReqLike
from dlm_serve.sglang.requests import keep_block, state_of


class DraftWindows:
    """Runs windows eagerly, in shapes of their own."""

    def __init__(self, step: BlockStep, model_runner: ModelRunnerLike, commit: Commit, choice: TokenChoice) -> None:
        self._step = step
        self._model_runner = model_runner
        self._table: Rows = step.table
        self._commit = commit
        self._choice = choice

    def start(self, reqs: Sequence[ReqLike], indices: torch.Tensor, blocks: Sequence[FirstBlock]) -> torch.Tensor:
        """Take the first run of each of `reqs`, which keeps no KV; return the next token of each [N].

        The other tokens of the runs stay in the table.
        """
        states = [state_of(req) for req in reqs]
        pending, runs = self._first_runs(reqs, indices, blocks)
        note_rest(reqs, self._table.gather(indices), pending, self._commit)
        for state, block, run in zip(states, blocks, runs, strict=True):
            state.first_run = range(block.start, block.start + len(run))
        # What was accepted before has KV: a run that starts over and differs from it gives way to the next one.
        found = enumerate(zip(blocks, runs, strict=True))
        changed = [i for i, (block, run) in found if not block.goes_on_as([*block.given, *run])]
        if changed:
            at = torch.tensor(changed, device=indices.device)
            again = [reqs[i] for i in changed]
            behind = [last_window([*req.origin_input_ids, *req.output_ids]) for req in again]
            pending[at] = self.start(again, indices[at], behind)
        return pending

    def _first_runs(
        self,
        reqs: Sequence[ReqLike],
        indices: torch.Tensor,
        blocks: Sequence[FirstBlock],
    ) -> tuple[torch.Tensor, list[list[int]]]:
        """Return the next token of each request [N], and the tokens that its first run accepts."""
        states = [state_of(req) for req in reqs]
        mask_token_id, device = self._choice.mask_token_id, indices.device
        anchors, starts, num_had = (
            torch.tensor(numbers, device=device)
            for numbers in zip(*((block.emitted[0], block.start, len(block.emitted)) for block in blocks), strict=True)
        )
        width = self._commit.row_width(max(state.current.block_length for state in states))
        rows = self._table.gather(indices, width).start_block(anchors, mask_token_id)
        spec = self._commit.attention_spec(rows, starts)
        _, prediction = self._step.run(rows, indices, spec)
        agree_on(prediction)
        for state in states:
            state.num_extend_forwards += 1
        after, output = self._commit.advance(rows, prediction, mask_token_id)
        after, pending = self._commit.skip_emitted(after, num_had, mask_token_id)
        self._table.scatter_(indices, after)
        runs = _tokens_of(output)
        drafting = [i for i, state in enumerate(states) if verifies_drafts(state.current)]
        if drafting:
            at = torch.tensor(drafting, device=device)
            self._table.scatter_(indices[at], start_draft(rows, prediction.ids).gather(at))
            self._keep_drafts(reqs, indices, blocks, drafting)
            members = [states[i] for i in drafting]
            verified = self.verify(members, indices[at], starts[at], kept=False)
            self._table.num_emitted[indices[at]] = 1
            pending[at] = verified.tokens[:, 0]
            for i, run in zip(drafting, _tokens_of(verified), strict=True):
                runs[i] = run
            self._keep_drafts(reqs, indices, blocks, drafting)
        for i in set(range(len(reqs))) - set(drafting):
            keep_block(reqs[i], blocks[i].start, [blocks[i].emitted[0], *runs[i]])
        return pending, runs

    def _keep_drafts(
        self, reqs: Sequence[ReqLike], indices: torch.Tensor, blocks: Sequence[FirstBlock], drafting: Sequence[int]
    ) -> None:
        """Note, where requests keep their history, their rows: tokens behind the anchor that are decided or drafted."""
        for i in drafting:
            if state_of(reqs[i]).history is not None:
                keep_block(reqs[i], blocks[i].start + 1, self._table.tokens_of(int(indices[i])))

    def verify(
        self,
        states: Sequence[RequestState],
        indices: torch.Tensor,
        committed_lens: torch.Tensor,
        *,
        kept: bool = True,
    ) -> StepOutput:
        """Run one forward over the windows of all drafts of the requests `states`; return what they emit.

        No KV is `kept` inside an EXTEND call, so that the first step behind it has more to encode.
        """
        number = max(state.current.block_length for state in states)
        width = self._commit.row_width(number)
        if any(state.is_extended for state in states):
            width += number
        for state in states:
            state.is_extended = not kept
            state.num_extend_forwards += not kept
        rows = self._table.gather(indices)
        # No graph says when the slot table is read: the scheduler waits for the whole forward.
        self._model_runner.shared_read_done_event = None
        each = torch.arange(len(states), device=indices.device).repeat_interleave(number)
        tried = draft_windows(rows, number, width, self._choice.mask_token_id)
        spec = self._commit.attention_spec(tried, committed_lens[each])
        spec = keeping_last(spec, rows, number) if kept else spec.without_kv()
        _, prediction = self._step.run(tried, indices[each], spec)
        if not kept:
            agree_on(prediction)
        ids = prediction.ids.view(-1, number, width)
        after, output = verify(rows, ids, self._choice.mask_token_id, kept=kept)
        self._table.scatter_(indices, after)
        return output


def _tokens_of(output: StepOutput) -> list[list[int]]:
    """Return what each row emits, on the host."""
    return [tokens[:length] for tokens, length in zip(output.tokens.tolist(), output.lens.tolist(), strict=True)]
