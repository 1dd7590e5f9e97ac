"""Nemotron-Labs-Diffusion: nvidia/Nemotron-Labs-Diffusion-3B, -8B, -14B.

Reference: `modeling_nemotron_labs_diffusion.py` of the release.
"""

from __future__ import annotations

from dlm_serve.decoding import CausalCommit, Mode
from dlm_serve.families.family import LLAMA_LAYER, Family, Tensors

NEMOTRON_LABS_DIFFUSION = Family(
    name="nemotron-labs-diffusion",
    architecture="NemotronLabsDiffusionModel",
    backbone="dlm_serve.models.ministral3:SharedScaleMinistral3",
    tensors=Tensors(
        outer=("encoder.embed_tokens.weight", "encoder.norm.weight", "diffusion_head.weight"),
        layers="encoder.layers.",
        layer=LLAMA_LAYER,
        renamed={"encoder": "model", "diffusion_head": "lm_head"},
    ),
    commit=CausalCommit(),
    modes=(Mode.SELF_SPECULATION, Mode.DIFFUSION, Mode.AUTOREGRESSIVE),
    reasoning_parser="qwen3",
)
