"""Checkpoints with random weights of the families, and checkpoints quantised as `weight_formats` does it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from golden import DATA
from safetensors import safe_open
from safetensors.torch import save_file
from sdar import RELEASED_AS as SDAR
from weight_formats import Format, Tensors

from dlm_serve.models.checkpoint import Checkpoint

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
INDEX = "model.safetensors.index.json"

SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "vocab_size": 512,
    "torch_dtype": "bfloat16",
}
"""Which all kernels for quantised weights can divide."""

SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "nemotron-labs-diffusion": ("nld-trained-b8", {}),
    "efficient-dlm": ("efficient_dlm/edlm-b8", {}),
    "sdlm": ("sdlm/sdlm-d8-untied", {}),
    "sdlm, tied": ("sdlm/sdlm-d4-tied", {}),
    "sdar": ("efficient_dlm/edlm-b8", {**SDAR, "eos_token_id": 1}),
}
"""The checkpoint whose `config.json` is taken for each, and what it is called by other names."""


def write_random(folder: Path, like: str, changes: dict[str, Any]) -> Checkpoint:
    """Write a checkpoint with random weights to a new folder."""
    folder.mkdir()
    config = json.loads((DATA / like / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **SIZES, **changes}))
    checkpoint = Checkpoint.find(str(folder))
    assert checkpoint is not None
    tied = set(checkpoint.family.tensors.untied) if checkpoint.tie_word_embeddings else set()
    random = torch.Generator().manual_seed(0)
    save_file(
        {
            name: torch.randn(_shape(name, checkpoint), generator=random).bfloat16()
            for name in sorted(checkpoint.tensor_names - tied)
        },
        folder / "model.safetensors",
    )
    return checkpoint


def _shape(name: str, checkpoint: Checkpoint) -> list[int]:
    """That of a tensor."""
    hidden, inside, head = checkpoint.hidden_size, checkpoint.intermediate_size, checkpoint.head_dim
    query, key_value = head * checkpoint.num_attention_heads, head * checkpoint.num_key_value_heads
    module, _, kind = name.rpartition(".")
    shapes = {
        "embed_tokens": [checkpoint.vocab_size, hidden],
        "_head": [checkpoint.vocab_size, hidden],
        "q_proj": [query, hidden],
        "k_proj": [key_value, hidden],
        "v_proj": [key_value, hidden],
        "o_proj": [hidden, query],
        "gate_proj": [inside, hidden],
        "up_proj": [inside, hidden],
        "down_proj": [hidden, inside],
        "q_norm": [head],
        "k_norm": [head],
        "norm": [hidden],
    }
    shape = next(shape for end, shape in shapes.items() if module.endswith(end))
    return shape[:1] if kind == "bias" else shape


def left_out_of(checkpoint: Checkpoint) -> list[str]:
    """What is left as it is: the head, which some formats would quantise, and the attention of the first layer."""
    tensors = checkpoint.family.tensors
    return [tensors.original("lm_head"), f"{tensors.layers}0.self_attn"]


def write(source: Path, out: Path, form: Format, left_out: Sequence[str]) -> None:
    """Write the checkpoint in `source` to the new folder `out`, its linear layers quantised but for those `left_out`.

    Modules keep their names. One file of weights is held in memory at a time.
    """
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("model*.safetensors", INDEX))
    file_of: dict[str, str] = {}
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, framework="pt") as given:
            tensors = dict(_quantized({name: given.get_tensor(name) for name in given.keys()}, form, left_out))  # noqa: SIM118
        save_file(tensors, out / file.name, metadata={"format": "pt"})
        file_of |= dict.fromkeys(tensors, file.name)
    if (source / INDEX).exists():
        size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
        (out / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": file_of}))
    config = json.loads((source / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": form.config(left_out)}, indent=2))


def _quantized(tensors: Tensors, form: Format, left_out: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        is_linear = kind == "weight" and module.endswith(("_proj", "_head"))
        if is_linear and not any(f"{module}.".startswith(f"{other}.") for other in left_out):
            yield from of_module(module, form.quantize_fused(tensor, _fused_with(module, tensors)))
        else:
            yield name, tensor


def _fused_with(module: str, tensors: Tensors) -> list[torch.Tensor]:
    """The weights that engines multiply by together with that of `module`, its own among them."""
    parent, _, own = module.rpartition(".")
    group = next((group for group in FUSED if own in group), (own,))
    return [tensors[f"{parent}.{name}.weight"] for name in group if f"{parent}.{name}.weight" in tensors]


def of_module(module: str, parts: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors for the weight of a module, by their whole names."""
    yield from ((f"{module}.{part}", tensor) for part, tensor in parts.items())
