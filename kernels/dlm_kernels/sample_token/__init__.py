"""Choose a token for each row of logits, greedily or by chance, and say how sure the model is and what is second."""

from __future__ import annotations

import torch

from dlm_kernels.sample_token import reference
from dlm_kernels.sample_token.sampling import HOTTEST, Nucleus, Sampling


def sample_token(
    logits: torch.Tensor,
    positions: torch.Tensor | None = None,
    sampling: Sampling | None = None,
    *,
    exclude_id: int,
    exclude_from_denominator: bool = False,
    nucleus: Nucleus = Nucleus.REACHING,
    with_second: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute `reference.sample_token`, which defines it: with Triton kernels on a GPU, with PyTorch elsewhere."""
    implementation = reference.sample_token
    if logits.is_cuda:
        from dlm_kernels.sample_token import triton

        implementation = triton.sample_token
    return implementation(
        logits,
        positions,
        sampling,
        exclude_id=exclude_id,
        exclude_from_denominator=exclude_from_denominator,
        nucleus=nucleus,
        with_second=with_second,
    )


__all__ = ["HOTTEST", "Nucleus", "Sampling", "sample_token"]
