"""The folder of a draft adapter: a LoRA of the output projections, as PEFT writes it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dlm_serve.errors import CheckpointError
from dlm_serve.models.checkpoint import AdapterConfig

_TENSOR_NAME = re.compile(r"layers\.(\d+)\.self_attn\.o_proj\.lora_([AB])\.weight$")

LowRank = tuple[torch.Tensor, torch.Tensor]
"""A [r, in] and B [out, r], which is scaled."""


def read_adapter(
    folder: Path, device: torch.device, dtype: torch.dtype, rank: int = 0, size: int = 1
) -> dict[int, LowRank]:
    """Return the low-rank product of each layer, A cut to the share of the input that rank `rank` of `size` has.

    Raises CheckpointError where files are missing, cannot be read or hold other modules.
    """
    try:
        config = AdapterConfig.model_validate(json.loads((folder / "adapter_config.json").read_text()))
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            "draft adapter", str(folder), f"cannot be read ({error})", "complete it, or lora.draft_adapter: none"
        ) from error
    pairs: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR_NAME.search(name)
        if match is None:
            raise CheckpointError(
                "draft adapter", name, "only o_proj is supported", "use an adapter with target_modules [o_proj]"
            )
        pairs.setdefault(int(match[1]), {})[match[2]] = tensor.to(device, dtype)
    return {
        layer_id: (pair["A"].chunk(size, dim=1)[rank].contiguous(), pair["B"] * config.scale)
        for layer_id, pair in pairs.items()
    }


def of_layer(weights: Mapping[int, LowRank], layer_id: int) -> LowRank:
    """Return the low-rank product of a layer. Raises CheckpointError if the adapter has none."""
    if layer_id not in weights:
        limit = "the adapter has no weights for this layer"
        raise CheckpointError("draft adapter", layer_id, limit, "use an adapter made for this model")
    return weights[layer_id]
