"""Efficient-DLM: nvidia/Efficient-DLM-4B, -8B.

Reference: `generate_with_prefix_cache_block_diff` of its authors' `chat_utils.py`, with the release's
`dlm_paradigm: bidirectional` and the card's `shift_logits=False`. Qwen3 with a head of its own.
"""

from __future__ import annotations

from typing import Any

from dlm_serve.decoding import BlockCommit, Mode, PromptMask
from dlm_serve.families.family import LLAMA_LAYER, Config, Family, Tensors, rope_parameters


def _normalise(config: Config) -> dict[str, Any]:
    """Return the rotary embedding under its newer name; end-of-sequence ids are the tokenizer's if none are named."""
    return {**rope_parameters(config), **config, "eos_token_id": config.get("eos_token_id") or []}


EFFICIENT_DLM = Family(
    name="efficient-dlm",
    architecture="EfficientDLM",
    backbone="sglang.srt.models.qwen3:Qwen3ForCausalLM",
    tensors=Tensors(
        outer=("encoder.embed_tokens.weight", "encoder.norm.weight", "diffusion_head.weight"),
        layers="encoder.layers.",
        layer=(*LLAMA_LAYER, "self_attn.q_norm.weight", "self_attn.k_norm.weight"),
        renamed={"encoder": "model", "diffusion_head": "lm_head"},
    ),
    normalise=_normalise,
    commit=BlockCommit(PromptMask.BIDIRECTIONAL),
    # As it was trained: blocks see themselves and what is before them. The release encodes prompts as a whole.
    other_commits=(BlockCommit(PromptMask.BLOCK_CAUSAL),),
    modes=(Mode.DIFFUSION,),
    refusals={
        Mode.AUTOREGRESSIVE: "Efficient-DLM is not trained to predict the next token",
        Mode.SELF_SPECULATION: "drafts are verified autoregressively, which Efficient-DLM was not trained for",
    },
)
