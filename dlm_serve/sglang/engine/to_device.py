"""Bring numbers to the device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def to_device(numbers: Sequence[int], device: str) -> torch.Tensor:
    """Return `numbers` on the device as int64, without waiting for it."""
    host = torch.tensor(numbers, dtype=torch.int64, pin_memory=device == "cuda")
    return host.to(device, non_blocking=True)
