"""A low-rank product that counts row by row, in plain PyTorch."""

from __future__ import annotations

import torch


def add_low_rank(
    hidden: torch.Tensor, low_rank: torch.Tensor, lora_b: torch.Tensor, token_on: torch.Tensor
) -> torch.Tensor:
    """Return `hidden` [T, out], plus `low_rank` [T, r] B^T in the rows where `token_on` [T] bool holds.

    `lora_b` B is [out, r]; all but `token_on` are of one dtype. Rows of the first two may lie apart.
    """
    return torch.addmm(hidden, low_rank * token_on[:, None].to(low_rank.dtype), lora_b.T)
