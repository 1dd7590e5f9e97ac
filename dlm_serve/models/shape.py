"""The sizes of a model, and those of Nemotron-Labs-Diffusion's releases."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from dlm_serve.errors import ConfigError

ROPE_PARAMETERS: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}

_COMMON = {
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 131072,
    "max_position_embeddings": 262144,
    "rope_parameters": ROPE_PARAMETERS,
}
RELEASES: dict[str, dict[str, Any]] = {
    "3b": {**_COMMON, "hidden_size": 3072, "intermediate_size": 9216, "num_hidden_layers": 26},
    "8b": {**_COMMON, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 34},
}
"""As in the `config.json` of nvidia/Nemotron-Labs-Diffusion-3B and -8B."""


class ModelShape(BaseModel):
    """The sizes of a model and its rotary embedding, named as in `config.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    max_position_embeddings: int = Field(gt=0)
    rope_parameters: dict[str, Any]

    def check_ranks(self, num_ranks: int) -> None:
        """Raise ConfigError where SGLang cannot divide the model by `num_ranks`, and would end at a bare assertion."""
        divided = {"attention heads": self.num_attention_heads, "intermediate size": self.intermediate_size}
        if num_ranks % self.num_key_value_heads:  # else they are replicated, and each rank has one
            divided["key-value heads"] = self.num_key_value_heads
        for what, number in divided.items():
            if number % num_ranks:
                limit = f"does not divide the model's {what}, {number}"
                raise ConfigError("--tp-size", num_ranks, limit, "give a number that does")
