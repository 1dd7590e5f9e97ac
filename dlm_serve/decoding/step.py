"""One decode step: how rows enter the forward (`layout`) and what its predictions do to them (`advance`).

What a family's policy means is in the file of its way to commit: `causal`, `block`, `fused`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dlm_serve.decoding import block, causal, fused
from dlm_serve.decoding.forward import Emission, Layout
from dlm_serve.decoding.policy import Commit, Policy
from dlm_serve.decoding.rows import Rows
from dlm_serve.decoding.sampling import Prediction


@dataclass(frozen=True)
class _Functions:
    layout: Callable[[Rows], Layout]
    advance: Callable[[Rows, Prediction, int], tuple[Rows, Emission]]
    carry: Callable[[Rows, torch.Tensor, int], tuple[Rows, torch.Tensor]]
    hand_out: Callable[[Rows], tuple[Rows, Emission]]


_OF = {
    Commit.CAUSAL: _Functions(causal.layout, causal.advance, causal.carry, causal.hand_out),
    Commit.BLOCK: _Functions(block.layout, block.advance, block.carry, block.hand_out),
    Commit.FUSED: _Functions(fused.layout, fused.advance, causal.carry, fused.hand_out),
}


def layout(rows: Rows, policy: Policy) -> Layout:
    """How `rows` enter the next forward, as their phases say."""
    return _OF[policy.commit].layout(rows)


def advance(rows: Rows, prediction: Prediction, mask_token_id: int, policy: Policy) -> tuple[Rows, Emission]:
    """The rows after a forward with these predictions, and what they emit."""
    return _OF[policy.commit].advance(rows, prediction, mask_token_id)


def advance_(
    table: Rows, indices: torch.Tensor, prediction: Prediction, mask_token_id: int, policy: Policy
) -> Emission:
    """`advance` of the rows of `table` at `indices` [B] int64, in place: on a GPU by one kernel, if there is one."""
    if indices.is_cuda and policy.commit is Commit.CAUSAL:
        from dlm_kernels.block_advance.triton import advance_ as advance_kernel

        predicted = (prediction.ids, prediction.confidence, prediction.entropy)
        return Emission(*advance_kernel(table, indices, *predicted, mask_token_id))
    after, emission = advance(table.gather(indices, prediction.ids.shape[1]), prediction, mask_token_id, policy)
    table.scatter_(indices, after)
    return emission


def carry(rows: Rows, num_emitted: torch.Tensor, mask_token_id: int, policy: Policy) -> tuple[Rows, torch.Tensor]:
    """Rows whose refined block is emitted in part: with their next token [B] emitted too, and that token.

    `num_emitted` [B] counts the tokens of the block that the client has already.
    """
    return _OF[policy.commit].carry(rows, num_emitted, mask_token_id)


def hand_out(rows: Rows, policy: Policy) -> tuple[Rows, Emission]:
    """The rows after emitting what of theirs is decided but not emitted yet, without a forward; and those tokens."""
    return _OF[policy.commit].hand_out(rows)
