"""BD3-LM: kuleshov-group/bd3lm-owt-block_size4, 8 and 16.

Reference: `diffusion.py` and `modeling_bd3lm.py` of kuleshov-group/bd3lms.
"""

from __future__ import annotations

from typing import Any

from dlm_serve.decoding import BlockAlgorithm, BlockCommit, Mode, Nucleus, PromptMask, StopRule
from dlm_serve.errors import CheckpointError
from dlm_serve.families.family import Config, Family, Tensors

CONTEXT_WINDOWS = 16
"""How many attention windows a sequence may be long. The window slides, so this bounds memory and nothing else."""


_VARIANT = {"time_conditioning": False, "adaln": True, "causal": False}
"""What the releases are, of all that their configuration class could describe."""


def _normalise(config: Config) -> dict[str, Any]:
    """Return the fields under our names.

    GPT-2's tokenizer ends with the token that begins and ends sequences, and the mask follows it.

    Raises CheckpointError for a variant that is not served.
    """
    for name, value in _VARIANT.items():
        if config.get(name, value) is not value:
            raise CheckpointError(name, config[name], f"only {value} is served", "use one of the BD3-LM releases")
    renamed = {"hidden_dim": "hidden_size", "n_blocks": "num_hidden_layers", "n_heads": "num_attention_heads"}
    fields = dict(config) | {ours: config[theirs] for theirs, ours in renamed.items() if theirs in config}
    fields |= {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    if {"hidden_dim", "n_heads"} <= config.keys():
        fields["num_key_value_heads"] = config["n_heads"]
        fields["head_dim"] = config["hidden_dim"] // config["n_heads"]
        fields["intermediate_size"] = 4 * config["hidden_dim"]
    if "vocab_size" in config:
        fields |= {"mask_token_id": config["vocab_size"] - 1, "eos_token_id": config["vocab_size"] - 2}
    if "model_length" in config:
        fields["max_position_embeddings"] = CONTEXT_WINDOWS * config["model_length"]
    return fields


BD3LM = Family(
    name="bd3lm",
    architecture="BD3LM",
    backbone="dlm_serve.models.bd3lm:BD3LMBackbone",
    tensors=Tensors(
        outer=(
            "backbone.vocab_embed.embedding",
            "backbone.sigma_map.mlp.0.weight",
            "backbone.sigma_map.mlp.0.bias",
            "backbone.sigma_map.mlp.2.weight",
            "backbone.sigma_map.mlp.2.bias",
            "backbone.rotary_emb.inv_freq",
            "backbone.output_layer.norm_final.weight",
            "backbone.output_layer.linear.weight",
            "backbone.output_layer.linear.bias",
            "backbone.output_layer.adaLN_modulation.weight",
            "backbone.output_layer.adaLN_modulation.bias",
            "sampling_eps_min",
            "sampling_eps_max",
        ),
        layers="backbone.blocks.",
        layer=(
            "norm1.weight",
            "attn_qkv.weight",
            "attn_out.weight",
            "norm2.weight",
            "mlp.0.weight",
            "mlp.0.bias",
            "mlp.2.weight",
            "mlp.2.bias",
            "adaLN_modulation.weight",
            "adaLN_modulation.bias",
        ),
    ),
    commit=BlockCommit(PromptMask.BLOCK_CAUSAL, on_grid=True, stops_in_blocks=False),
    mask_in_denominator=False,
    nucleus=Nucleus.WITHIN,
    modes=(Mode.DIFFUSION,),
    refusals={
        Mode.AUTOREGRESSIVE: "BD3-LM was not trained to predict the next token",
        Mode.SELF_SPECULATION: "BD3-LM has no causal predictions to verify a draft with",
    },
    normalise=_normalise,
    algorithms=(BlockAlgorithm.FIRST_HITTING, BlockAlgorithm.THRESHOLD, BlockAlgorithm.CONFIDENCE),
    scheduled=(BlockAlgorithm.FIRST_HITTING, BlockAlgorithm.CONFIDENCE),
    stop_rules=(StopRule.EOS, StopRule.UPSTREAM),
    begins_with_eos=True,
    tokenizer="openai-community/gpt2",
    temperature=0.5,
    floats_only="BD3-LM's modulation is folded into its weights, which must be floats for that",
)
