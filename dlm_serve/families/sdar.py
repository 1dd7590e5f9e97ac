"""SDAR, dense: JetLM/SDAR-1.7B-Chat, -4B-Chat, -8B-Chat.

Qwen3 that denoises blocks on a grid from position 0; the prompt is encoded by the same blocks, and its unfinished last
one is where the answer begins. Reference: JetAstra/SDAR, and SGLang's own `models/sdar.py` and `dllm/`, which
supply the mask id and the block size where a checkpoint names neither.
"""

from __future__ import annotations

from typing import Any

from dlm_serve.decoding import BlockCommit, Mode, PromptMask
from dlm_serve.families.family import LLAMA_LAYER, Config, Family, Tensors, rope_parameters


def _normalise(config: Config) -> dict[str, Any]:
    return {"mask_token_id": 151669, "block_size": 4, **rope_parameters(config), **config}


SDAR = Family(
    name="sdar",
    architecture="SDARBlockDiffusion",
    backbone="sglang.srt.models.qwen3:Qwen3ForCausalLM",
    released_as="SDARForCausalLM",
    model_type="sdar",
    configured_as="qwen3",
    normalise=_normalise,
    tensors=Tensors(
        outer=("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"),
        layers="model.layers.",
        layer=(*LLAMA_LAYER, "self_attn.q_norm.weight", "self_attn.k_norm.weight"),
        untied=("lm_head.weight",),
    ),
    commit=BlockCommit(PromptMask.BLOCK_CAUSAL, on_grid=True),
    modes=(Mode.DIFFUSION,),
    refusals={
        Mode.AUTOREGRESSIVE: "SDAR's tokens attend to their whole block, so it cannot decode one token at a time",
        Mode.SELF_SPECULATION: "SDAR has no causal predictions to verify a draft with",
    },
)
