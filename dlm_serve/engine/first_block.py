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

        What is then left to emit of the block stays in the table. Refining writes no KV.
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
        num_emitted = torch.tensor([block.num_emitted for block in blocks], device=device)
        rows, pending = carry(self._table.gather(indices), num_emitted, mask_token_id, self._policy)
        self._table.scatter_(indices, rows)
        _, rest = hand_out(rows, self._policy)
        left = zip(pending.tolist(), rest.tokens.tolist(), rest.lens.tolist(), strict=True)
        for req, (first, others, length) in zip(reqs, left, strict=True):
            record_of(req).end_extend(req, [first, *others[:length]])
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
