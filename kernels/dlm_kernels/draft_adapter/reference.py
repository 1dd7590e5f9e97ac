"""A low-rank product that counts row by row, in plain PyTorch."""

from __future__ import annotations

import torch


def add_low_rank(
    hidden: torch.Tensor,
    low_rank: torch.Tensor,
    lora_b: torch.Tensor,
    token_on: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return `hidden` [T, N], plus `low_rank` [T, r] B^T in the rows where `token_on` [T] bool holds.

    `lora_b` B is [N, r]; all but `token_on` are of one dtype. Rows of the first two may lie apart. The sum is written
    to `out` [T, N], if given, which may be `hidden`.
    """
    return torch.addmm(hidden, low_rank * token_on[:, None].to(low_rank.dtype), lora_b.T, out=out)
