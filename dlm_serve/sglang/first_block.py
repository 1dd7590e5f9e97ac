"""The first block of a request, denoised inside the EXTEND call where the prefill does not say how it begins."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dlm_serve.decoding import Commit, FirstBlock, Phase, Rows, TokenChoice
from dlm_serve.sglang.agreement import agree_on
from dlm_serve.sglang.block_step import Step
from dlm_serve.sglang.protocols import ReqLike
from dlm_serve.sglang.requests import end_extend, keep_block, state_of


class FirstBlocks:
    """Denoises blocks to their end, several requests at a time."""

    def __init__(self, step: Step, table: Rows, commit: Commit, choice: TokenChoice) -> None:
        self._step = step
        self._table = table
        self._commit = commit
        self._choice = choice

    def start(self, reqs: Sequence[ReqLike], indices: torch.Tensor, blocks: Sequence[FirstBlock]) -> torch.Tensor:
        """Denoise the first block of each of `reqs`; return the next token of each [N].

        What is then left to emit of the block stays in the table. Denoising writes no KV. A block that starts over
        and differs from what it had emitted is denoised behind that.
        """
        mask_token_id, device = self._choice.mask_token_id, indices.device
        rows = self._table.gather(indices)
        tokens = torch.full(rows.tokens.shape, mask_token_id)
        for row, block in enumerate(blocks):
            tokens[row, : len(block.given)] = torch.tensor(block.given)
        num_given = torch.tensor([len(block.given) for block in blocks], dtype=torch.int32, device=device)
        self._table.scatter_(indices, rows.with_block(tokens.to(device), num_given))
        committed_lens = torch.tensor([block.start + len(block.given) - 1 for block in blocks], device=device)
        self._denoise(reqs, indices, blocks, committed_lens)
        denoised = self._table.gather(indices)
        num_emitted = torch.tensor([len(block.emitted) for block in blocks], device=device)
        rows, pending = self._commit.skip_emitted(denoised, num_emitted, mask_token_id)
        self._table.scatter_(indices, rows)
        note_rest(reqs, rows, pending, self._commit)
        found = zip(blocks, denoised.tokens.tolist(), strict=True)
        changed = [i for i, (block, tokens) in enumerate(found) if not block.goes_on_as(tokens)]
        if changed:
            at = torch.tensor(changed, device=device)
            again, as_emitted = [reqs[i] for i in changed], [blocks[i].all_given() for i in changed]
            pending[at] = self.start(again, indices[at], as_emitted)
        return pending

    def _denoise(
        self,
        reqs: Sequence[ReqLike],
        indices: torch.Tensor,
        blocks: Sequence[FirstBlock],
        committed_lens: torch.Tensor,
    ) -> None:
        """Run forwards over the blocks that are not settled yet, until all are."""
        states = [state_of(req) for req in reqs]
        live = list(range(len(states)))
        while live:
            at, running = torch.tensor(live, device=indices.device), [states[i] for i in live]
            width = max(state.current.block_length for state in running)
            forward = self._step.forward(indices[at], committed_lens[at], width)
            agree_on(forward.prediction)
            forward.advance()
            for state in running:
                state.num_extend_forwards += 1
            for i in live:
                if states[i].history is not None:
                    keep_block(reqs[i], blocks[i].start, self._table.tokens_of(int(indices[i])))
            phases = self._table.phase[indices].tolist()
            live = [i for i in live if phases[i] == Phase.DENOISE]


def note_rest(reqs: Sequence[ReqLike], rows: Rows, pending: torch.Tensor, commit: Commit) -> None:
    """Note of each of `reqs` what an EXTEND call left to emit: its next token `pending` [N] and the rest of its row."""
    _, rest = commit.flush(rows)
    left = zip(pending.tolist(), rest.tokens.tolist(), rest.lens.tolist(), strict=True)
    for req, (first, tokens, length) in zip(reqs, left, strict=True):
        end_extend(req, [first, *tokens[:length]])
