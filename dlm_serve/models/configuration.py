"""Hugging Face configuration classes. Light to import: every SGLang process unpickles one of them."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.models.ministral3.configuration_ministral3 import Ministral3Config

from dlm_serve.families import BD3LM, FAMILIES


class NemotronLabsDiffusionConfig(Ministral3Config):  # type: ignore[misc]  # the base is untyped
    """Ministral-3 with a mask token and a block size (reference: `configuration_nemotron_labs_diffusion.py`)."""

    model_type = "nemotron_labs_diffusion"

    mask_token_id: int | None = None
    block_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # SGLang's Ministral-3 reads the period of the Llama-4 query scaling from the top level.
        self.original_max_position_embeddings = self.rope_parameters["original_max_position_embeddings"]


class BD3LMConfig(PreTrainedConfig):  # type: ignore[misc]  # the base is untyped
    """BD3-LM with the names that SGLang reads (reference: `configuration_bd3lm.py`)."""

    model_type = "bd3lm"
    attribute_map: ClassVar = {
        "hidden_size": "hidden_dim",
        "num_hidden_layers": "n_blocks",
        "num_attention_heads": "n_heads",
    }

    vocab_size: int = 50258
    block_size: int = 1
    model_length: int = 1024
    hidden_dim: int = 768
    n_blocks: int = 12
    n_heads: int = 12
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        fields = BD3LM.normalise(self.to_dict())
        for name in ("num_key_value_heads", "head_dim", "max_position_embeddings", "eos_token_id"):
            setattr(self, name, fields[name])
        self.bos_token_id = self.eos_token_id


def _shared_config(model_type: str, configured_as: str) -> Any:
    """Return a configuration class like that of `configured_as`, in this module, where unpickling finds it."""
    name = f"{model_type.capitalize()}Config"
    config = type(name, (CONFIG_MAPPING[configured_as],), {"model_type": model_type, "__module__": __name__})
    globals()[name] = config
    return config


_SHARED: list[Any] = [
    _shared_config(family.model_type, family.configured_as)
    for family in FAMILIES
    if family.model_type and family.configured_as
]


def register_configs() -> None:
    """Make `AutoConfig` know the families without their remote code."""
    for config in (NemotronLabsDiffusionConfig, BD3LMConfig, *_SHARED):
        AutoConfig.register(config.model_type, config, exist_ok=True)
