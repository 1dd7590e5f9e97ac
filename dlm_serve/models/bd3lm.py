"""The backbone of BD3-LM: a transformer of GPT-2's size with rotary positions.

With the modulation folded into the weights (`modulation.py`) it is pre-norm, with layer norms, a fused projection of
queries, keys and values, and an output layer that has a bias. Its parts are named as in SGLang's Llama.
Reference: `modeling_bd3lm.py` of kuleshov-group/bd3lms.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sglang.srt.layers.layernorm import LayerNorm
from sglang.srt.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.rotary_embedding import get_rope
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from sglang.srt.model_loader.weight_utils import default_weight_loader
from torch import nn

from dlm_serve.models.configuration import BD3LMConfig
from dlm_serve.models.modulation import fold_modulation

_NORM_EPS = 1e-5
_ROPE_BASE = 10000

_NOT_WEIGHTS = ("rotary_emb.inv_freq", "sampling_eps_min", "sampling_eps_max")
_RENAMED = {
    "vocab_embed.embedding": "model.embed_tokens.weight",
    "output_layer.norm_final.": "model.norm.",
    "output_layer.linear.": "lm_head.",
    "blocks.": "model.layers.",
    ".norm1.": ".input_layernorm.",
    ".attn_qkv.": ".self_attn.qkv_proj.",
    ".attn_out.": ".self_attn.o_proj.",
    ".norm2.": ".post_attention_layernorm.",
    ".mlp.0.": ".mlp.up_proj.",
    ".mlp.2.": ".mlp.down_proj.",
}


class BD3LMBackbone(nn.Module):
    """Logits of a batch of SGLang's; which tokens see each other its attention backend decides."""

    def __init__(self, config: BD3LMConfig, quant_config: None = None, prefix: str = "") -> None:
        super().__init__()
        self.config = config
        self.attention_window = config.model_length - config.block_size
        self.updates_in_parts = False  # see load_weights
        self.model = Transformer(config)
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_dim, bias=True)
        self.logits_processor = LogitsProcessor(config)

    @torch.no_grad()
    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, forward_batch: Any) -> Any:
        """Return SGLang's LogitsProcessorOutput for `input_ids` [N] at `positions` [N]."""
        hidden = self.model(input_ids, positions, forward_batch)
        return self.logits_processor(input_ids, hidden, self.lm_head, forward_batch)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load the tensors of a checkpoint, all at once: modulations change the weights of other layers."""
        tensors = {name.removeprefix("backbone."): tensor for name, tensor in weights}
        parameters = dict(self.named_parameters())
        for name, tensor in fold_modulation(tensors).items():
            if name not in _NOT_WEIGHTS:
                parameter = parameters[_parameter_name(name)]
                getattr(parameter, "weight_loader", default_weight_loader)(parameter, tensor)


class Transformer(nn.Module):
    """All between token ids and the output layer."""

    def __init__(self, config: BD3LMConfig) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_dim)
        self.layers = nn.ModuleList(Layer(i, config) for i in range(config.n_blocks))
        self.start_layer, self.end_layer = 0, config.n_blocks
        self.norm = LayerNorm(config.hidden_dim, _NORM_EPS)

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, forward_batch: Any) -> torch.Tensor:
        """Return normed hidden states [N, D]."""
        hidden = self.embed_tokens(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, positions, forward_batch)
        return self.norm(hidden)  # type: ignore[no-any-return]  # SGLang's layers are untyped


class Layer(nn.Module):
    """Attention and MLP, each behind a layer norm and added to its input."""

    def __init__(self, layer_id: int, config: BD3LMConfig) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(config.hidden_dim, _NORM_EPS)
        self.self_attn = Attention(layer_id, config)
        self.post_attention_layernorm = LayerNorm(config.hidden_dim, _NORM_EPS)
        self.mlp = MLP(config.hidden_dim)

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor, forward_batch: Any) -> torch.Tensor:
        """Return `hidden` [N, D] behind this layer."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), positions, forward_batch)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head attention, queries and keys rotated."""

    def __init__(self, layer_id: int, config: BD3LMConfig) -> None:
        super().__init__()
        size, head_dim = config.hidden_dim, config.hidden_dim // config.n_heads
        self.qkv_proj = QKVParallelLinear(size, head_dim, config.n_heads, bias=False)
        self.o_proj = RowParallelLinear(size, size, bias=False)
        self.rotary_emb = get_rope(head_dim, head_dim, config.max_position_embeddings, _ROPE_BASE)
        num_heads = self.qkv_proj.num_heads
        self.attn = RadixAttention(num_heads, head_dim, head_dim**-0.5, num_heads, layer_id)

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor, forward_batch: Any) -> torch.Tensor:
        """Return [N, D] for `hidden` [N, D]."""
        qkv, _ = self.qkv_proj(hidden)
        q, k, v = (part.contiguous() for part in qkv.chunk(3, dim=-1))
        q, k = self.rotary_emb(positions, q, k)
        out, _ = self.o_proj(self.attn(q, k, v, forward_batch))
        return out  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Four times as wide inside, with the tanh form of GELU."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.up_proj = ColumnParallelLinear(size, 4 * size)
        self.down_proj = RowParallelLinear(4 * size, size)
        self.activation = nn.GELU(approximate="tanh")

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return [N, D] for `hidden` [N, D]."""
        wide, _ = self.up_proj(hidden)
        out, _ = self.down_proj(self.activation(wide))
        return out  # type: ignore[no-any-return]


def _parameter_name(name: str) -> str:
    """Return the name of our parameter for a tensor of the checkpoint."""
    for theirs, ours in _RENAMED.items():
        name = name.replace(theirs, ours)
    return name
