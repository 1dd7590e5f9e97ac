"""The LoRA of the output projections that counts for drafted tokens alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from dlm_kernels.draft_adapter import add_low_rank
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)

from dlm_serve.models.adapter_file import LowRank, of_layer, read_adapter


@torch.library.custom_op("dlm_serve::add_draft_adapter_", mutates_args=("hidden",))
def _add_draft_adapter_(
    hidden: torch.Tensor,
    x: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    token_on: torch.Tensor,
    may_draft: torch.Tensor,
) -> None:
    """Add the adapter's product to `hidden` as an operator, into which the compiler of the backbone does not look."""
    if may_draft:
        # Each rank has a share of the input: the sum over ranks is taken of the few columns of the low rank.
        low_rank = tensor_model_parallel_all_reduce(x @ lora_a.T)
        add_low_rank(hidden, low_rank, lora_b, token_on[: len(hidden)], out=hidden)


@_add_draft_adapter_.register_fake
def _(*_: torch.Tensor) -> None:
    """Nothing is returned."""


class DraftAdapter:
    """Which tokens of a forward it counts for, and whether it is computed at all."""

    def __init__(self, most_tokens: int, device: torch.device) -> None:
        self.token_on = torch.zeros(most_tokens, dtype=torch.bool, device=device)
        self.may_draft = torch.ones((), dtype=torch.bool)
        """On the host, where the operator reads it: graphs that are captured without leave the adapter out."""

    @classmethod
    def attached(cls, folder: Path, backbone: Any, most_tokens: int) -> DraftAdapter:
        """Put the adapter in `folder` behind the output projections of vLLM's `backbone`. Raises CheckpointError."""
        norm = backbone.norm.weight
        rank, size = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        weights = read_adapter(folder, norm.device, norm.dtype, rank, size)
        adapter = cls(most_tokens, norm.device)
        for layer_id in range(backbone.start_layer, backbone.end_layer):
            attention = backbone.layers[layer_id].self_attn
            attention.o_proj = _Adapted(attention.o_proj, of_layer(weights, layer_id), adapter)
        return adapter


class _Adapted(torch.nn.Module):
    """An output projection with the adapter's product where it counts."""

    lora_a: torch.Tensor
    lora_b: torch.Tensor
    token_on: torch.Tensor
    may_draft: torch.Tensor

    def __init__(self, o_proj: torch.nn.Module, weights: LowRank, adapter: DraftAdapter) -> None:
        super().__init__()
        self.o_proj = o_proj
        self.register_buffer("lora_a", weights[0], persistent=False)
        self.register_buffer("lora_b", weights[1], persistent=False)
        self.register_buffer("token_on", adapter.token_on, persistent=False)
        self.register_buffer("may_draft", adapter.may_draft, persistent=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Return `x` [T, in] projected, and the bias that vLLM's projections leave to their callers."""
        hidden, bias = self.o_proj(x)
        _add_draft_adapter_(hidden, x, self.lora_a, self.lora_b, self.token_on, self.may_draft)
        return hidden, bias
