"""Hugging Face configuration classes. Light to import: every SGLang process unpickles one of them."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig
from transformers.models.ministral3.configuration_ministral3 import Ministral3Config


class NemotronLabsDiffusionConfig(Ministral3Config):  # type: ignore[misc]  # the base is untyped
    """Ministral-3 with a mask token and a block size (reference: `configuration_nemotron_labs_diffusion.py`)."""

    model_type = "nemotron_labs_diffusion"

    mask_token_id: int | None = None
    block_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # SGLang's Ministral-3 reads the period of the Llama-4 query scaling from the top level.
        self.original_max_position_embeddings = self.rope_parameters["original_max_position_embeddings"]


def register_configs() -> None:
    """Make `AutoConfig` know the families without their remote code."""
    AutoConfig.register(NemotronLabsDiffusionConfig.model_type, NemotronLabsDiffusionConfig, exist_ok=True)
