"""The two places in SGLang's KV memory that are Triton kernels, in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool


class TorchKVPool(MHATokenToKVPool):  # type: ignore[misc]  # the base is untyped
    """SGLang's KV pool without the Triton kernel that it warms up for moving slots, which nothing here does."""

    def _init_kv_copy_and_warmup(self) -> None:
        pass


def assign_req_to_token_pool(
    original: Any,
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    batch_size: int,
) -> None:
    """Write newly reserved slots into their requests' rows, [start, end) of each; SGLang's is a Triton kernel."""
    start = 0
    for row, begin, end in zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True):
        slots = out_cache_loc[start : start + end - begin]
        req_to_token[row, begin:end] = slots.to(req_to_token.dtype)
        start += end - begin
