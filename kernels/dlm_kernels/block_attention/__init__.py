"""Compute the attention of short rows of new tokens over paged committed KV."""

from __future__ import annotations

import torch

from dlm_kernels.block_attention import reference
from dlm_kernels.block_attention.reference import Visible


def block_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_table: torch.Tensor,
    slot_rows: torch.Tensor,
    prefix_lens: torch.Tensor,
    visible: Visible,
    scale: float,
) -> torch.Tensor:
    """Compute `reference.block_attention`, which defines it: with the kernels on a GPU, with PyTorch elsewhere."""
    implementation = reference.block_attention
    if q.is_cuda:
        from dlm_kernels.block_attention import launch

        implementation = launch.block_attention
    return implementation(q, k, v, k_cache, v_cache, slot_table, slot_rows, prefix_lens, visible, scale)


__all__ = ["Visible", "block_attention"]
