"""The first block of a request, refined inside the EXTEND call where the prefill does not say how it begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from dlm_serve.decoding import Phase, Policy, Prediction, Rows, Sampling, carry, hand_out
from dlm_serve.engine.block_step import Step
from dlm_serve.engine.requests import FirstBlock, record_of


class Predict(Protocol):
    """A block forward over the rows of `reqs`: its logits, and tokens chosen as each of them samples."""

    def __call__(
        self, reqs: Sequence[Any], indices: torch.Tensor, committed: torch.Tensor, width: int, sampling: Sampling
    ) -> tuple[torch.Tensor, Prediction]: ...


class FirstBlocks:
    """Refines blocks to their end, several requests at a time."""

    def __init__(self, step: Step, table: Rows, mask_token_id: int, policy: Policy, predict: Predict) -> None:
        self._step = step
        self._table = table
        self._mask_token_id = mask_token_id
        self._policy = policy
        self._predict = predict

    def start(
        self, reqs: Sequence[Any], indices: torch.Tensor, blocks: Sequence[FirstBlock], sampling: Sampling
    ) -> torch.Tensor:
        """Refine the first block of each of `reqs`; returns the next token of each [N].

        What is then left to emit of the block stays in the table. Refining writes no KV. A block that starts over
        and differs from what it had emitted is refined behind that.
        """
        mask_token_id, device = self._mask_token_id, indices.device
        rows = self._table.gather(indices)
        tokens = torch.full(rows.tokens.shape, mask_token_id)
        for row, block in enumerate(blocks):
            tokens[row, : len(block.given)] = torch.tensor(block.given)
        num_given = torch.tensor([len(block.given) for block in blocks], dtype=torch.int32, device=device)
        self._table.scatter_(indices, rows.with_block(tokens.to(device), num_given))
        committed = torch.tensor([block.start + len(block.given) - 1 for block in blocks], device=device)
        self._refine(reqs, indices, committed, sampling)
        refined = self._table.gather(indices)
        num_emitted = torch.tensor([len(block.emitted) for block in blocks], device=device)
        rows, pending = carry(refined, num_emitted, mask_token_id, self._policy)
        self._table.scatter_(indices, rows)
        note_rest(reqs, rows, pending, self._policy)
        found = zip(blocks, refined.tokens.tolist(), strict=True)
        changed = [i for i, (block, tokens) in enumerate(found) if not block.goes_on_as(tokens)]
        if changed:
            at = torch.tensor(changed, device=device)
            again, as_emitted = [reqs[i] for i in changed], [blocks[i].all_given() for i in changed]
            pending[at] = self.start(again, indices[at], as_emitted, sampling.select(at))
        return pending

    def _refine(self, reqs: Sequence[Any], indices: torch.Tensor, committed: torch.Tensor, sampling: Sampling) -> None:
        """Forwards over the blocks that are not settled yet, until all are."""
        live = list(range(len(reqs)))
        while live:
            at, refined = torch.tensor(live, device=indices.device), [reqs[i] for i in live]
            width = max(record_of(req).plan.block_length for req in refined)
            _, prediction = self._predict(refined, indices[at], committed[at], width, sampling.select(at))
            self._step.advance(indices[at], prediction)
            for req in refined:
                record_of(req).extend_forwards += 1
            phases = self._table.phase[indices].tolist()
            live = [i for i in live if phases[i] == Phase.DENOISE]


def note_rest(reqs: Sequence[Any], rows: Rows, pending: torch.Tensor, policy: Policy) -> None:
    """Note of each of `reqs` what an EXTEND call left to emit: its next token `pending` [N] and the rest of its row."""
    _, rest = hand_out(rows, policy)
    left = zip(pending.tolist(), rest.tokens.tolist(), rest.lens.tolist(), strict=True)
    for req, (first, tokens, length) in zip(reqs, left, strict=True):
        record_of(req).end_extend(req, [first, *tokens[:length]])
