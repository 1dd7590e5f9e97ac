"""Add the draft adapter's low-rank product to an output projection, for the tokens that draft."""

from __future__ import annotations

import torch

from dlm_kernels.draft_adapter import reference


def add_low_rank(
    hidden: torch.Tensor,
    low_rank: torch.Tensor,
    lora_b: torch.Tensor,
    token_on: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute `reference.add_low_rank`, which defines it: with a Triton kernel on a GPU, with PyTorch elsewhere."""
    implementation = reference.add_low_rank
    if hidden.is_cuda:
        from dlm_kernels.draft_adapter import triton

        implementation = triton.add_low_rank
    return implementation(hidden, low_rank, lora_b, token_on, out)


__all__ = ["add_low_rank"]
