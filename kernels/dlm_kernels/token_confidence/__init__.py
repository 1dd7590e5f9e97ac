"""Find the most likely token of each row of logits, its probability and the row's entropy, in one pass."""

from __future__ import annotations

import torch

from dlm_kernels.token_confidence import reference


def token_confidence(
    logits: torch.Tensor, exclude_id: int, exclude_from_denominator: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute `reference.token_confidence`, which defines it: with Triton kernels on a GPU, with PyTorch elsewhere."""
    implementation = reference.token_confidence
    if logits.is_cuda:
        from dlm_kernels.token_confidence import triton

        implementation = triton.token_confidence
    return implementation(logits, exclude_id, exclude_from_denominator)


__all__ = ["token_confidence"]
