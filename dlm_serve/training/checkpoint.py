"""Read and write training models as checkpoint folders, under the release's own names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dlm_serve.errors import ConfigError
from dlm_serve.families import NEMOTRON_LABS_DIFFUSION
from dlm_serve.models.checkpoint import DRAFT_ADAPTER_FOLDER, Checkpoint
from dlm_serve.models.configuration import NemotronLabsDiffusionConfig
from dlm_serve.training.model import DiffusionModel

_ADAPTER_PREFIX = "base_model.model."


def load_model(folder: Path, *, with_adapter: bool = True) -> DiffusionModel:
    """Return the model in `folder` in float32, with its draft adapter if any. Raises CheckpointError, ConfigError."""
    checkpoint = Checkpoint.find(str(folder))
    if checkpoint is None or checkpoint.family is not NEMOTRON_LABS_DIFFUSION:
        raise ConfigError("start_from", str(folder), "no checkpoint of Nemotron-Labs-Diffusion", "give such a folder")
    checkpoint.check_weights()
    content = json.loads((folder / "config.json").read_text())
    content.pop("auto_map", None)
    model = DiffusionModel(NemotronLabsDiffusionConfig(**content))
    tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    adapter = folder / DRAFT_ADAPTER_FOLDER
    if with_adapter and adapter.is_dir():
        lora = json.loads((adapter / "adapter_config.json").read_text())
        model.adapt(lora["r"], lora["lora_alpha"])
        for name, tensor in load_file(adapter / "adapter_model.safetensors").items():
            tensors[name.removeprefix(_ADAPTER_PREFIX).removesuffix(".weight")] = tensor
    model.load_state_dict(tensors)
    return model


def save_model(model: DiffusionModel, folder: Path) -> None:
    """Write configuration, weights and the draft adapter, if there is one, in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    weights: dict[str, torch.Tensor] = {}
    adapter: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.to("cpu", torch.bfloat16).contiguous()
        if "lora_" in name:
            adapter[f"{_ADAPTER_PREFIX}{name}.weight"] = tensor
        else:
            weights[name] = tensor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", _config_content(model.config))
    ends = {"bos_token_id": model.config.bos_token_id, "eos_token_id": [model.config.eos_token_id]}
    _write_json(folder / "generation_config.json", ends)
    if adapter:
        _save_adapter(model, adapter, folder / DRAFT_ADAPTER_FOLDER)


def _save_adapter(model: DiffusionModel, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Write the draft adapter in PEFT's format."""
    folder.mkdir(exist_ok=True)
    o_proj = model.adapted()[0]
    rank, scale = o_proj.lora_A.shape[0], o_proj.scale or 0.0
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": round(scale * rank),
        "target_modules": ["o_proj"],
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "task_type": None,
        "base_model_name_or_path": None,
    }
    _write_json(folder / "adapter_config.json", config)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def _config_content(config: NemotronLabsDiffusionConfig) -> dict[str, Any]:
    """Return the fields of `config.json`, named as in the release."""
    names = (
        "vocab_size max_position_embeddings hidden_size intermediate_size num_hidden_layers num_attention_heads "
        "num_key_value_heads head_dim hidden_act initializer_range rms_norm_eps use_cache rope_parameters "
        "attention_dropout sliding_window mask_token_id block_size bos_token_id eos_token_id pad_token_id "
        "tie_word_embeddings"
    )
    return {
        "architectures": [NEMOTRON_LABS_DIFFUSION.architecture],
        "model_type": NemotronLabsDiffusionConfig.model_type,
        **{name: getattr(config, name) for name in names.split()},
        "attention_bias": False,
        "mlp_bias": False,
        "dlm_paradigm": "bidirectional",
        "torch_dtype": "bfloat16",
    }
