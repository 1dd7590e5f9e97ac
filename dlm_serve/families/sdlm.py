"""SDLM: OpenGVLab/SDLM-3B-D4, -3B-D8, -32B-D4.

Qwen2.5 that was trained on windows of masks behind each position. Decided tokens are encoded causally, so their KV
is that of a causal model. Reference: `sdlm_inference.py` and `sdlm_generator.py` of OpenGVLab/SDLM.
"""

from __future__ import annotations

from typing import Any

from dlm_serve.decoding import Mode, WindowAlgorithm, WindowCommit
from dlm_serve.errors import CheckpointError
from dlm_serve.families.family import LLAMA_LAYER, Config, Family, Tensors, rope_parameters


def _normalise(config: Config) -> dict[str, Any]:
    """Return the fields of Qwen2's `config.json`, whose heads divide the hidden size, and the trainer's own."""
    if config.get("causal_attn"):
        raise CheckpointError("causal_attn", True, "causal windows are not supported", "use another checkpoint")
    fields = {**rope_parameters(config), **config, "mask_token_id": config["text_mask_token_id"]}
    if config.get("head_dim") is None and config.get("hidden_size") and config.get("num_attention_heads"):
        fields["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    return fields


SDLM = Family(
    name="sdlm",
    architecture="SDLMForCausalLM",
    backbone="sglang.srt.models.qwen2:Qwen2ForCausalLM",
    released_as="Qwen2ForCausalLM",
    marks=("block_size", "text_mask_token_id"),
    normalise=_normalise,
    tensors=Tensors(
        outer=("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"),
        layers="model.layers.",
        layer=(*LLAMA_LAYER, "self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
        untied=("lm_head.weight",),
    ),
    commit=WindowCommit(),
    modes=(Mode.DIFFUSION, Mode.AUTOREGRESSIVE),
    refusals={
        Mode.SELF_SPECULATION: "it verifies drafts by windows, so the answers are not those of mode autoregressive: "
        "that is the algorithm self_speculative of mode diffusion"
    },
    algorithms=tuple(WindowAlgorithm),
)
