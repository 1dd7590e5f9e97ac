"""Define the network that the server serves as `NemotronLabsDiffusionModel` in plain PyTorch, for training.

Ministral-3: RMSNorm, grouped-query attention with YaRN and Llama-4 query scaling, SwiGLU, an untied
head. Parameter names are the checkpoint's.

One residual channel, the last, is constant: 1 in every embedding, never written by a layer, and the
final norm's weight there is 1. A head row that reads it with a large negative weight can never win,
which is what a checkpoint padded to a larger vocabulary needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from dlm_serve.models.configuration import NemotronLabsDiffusionConfig
from dlm_serve.training.layout import Mask, attend

CONSTANT_CHANNEL = -1
"""The residual channel that is 1 everywhere."""


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the statistics in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


class Adapted(nn.Linear):
    """A linear map with a low-rank addition for some tokens only: the draft adapter."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    scale: float | None = None

    def adapt(self, rank: int, alpha: float, generator: torch.Generator) -> None:
        """Add an adapter [rank, in], [out, rank] that changes nothing yet."""
        self.scale = alpha / rank
        lora_a = torch.randn(rank, self.in_features, generator=generator) * self.in_features**-0.5
        self.lora_A = nn.Parameter(lora_a.to(self.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, device=self.weight.device))

    def add(self, x: torch.Tensor, drafting: torch.Tensor | None) -> torch.Tensor:
        """Map `x` [B, T, in], with the adapter where `drafting` [B, T] holds."""
        out: torch.Tensor = self(x)
        if self.scale is None or drafting is None:
            return out
        added = functional.linear(functional.linear(x, self.lora_A), self.lora_B) * self.scale
        return out + added * drafting[..., None].to(added.dtype)


class Attention(nn.Module):
    """Grouped-query attention; the caller's `mask` says what a token sees."""

    def __init__(self, config: NemotronLabsDiffusionConfig) -> None:
        super().__init__()
        hidden, self.head_dim = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(hidden, config.num_attention_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, config.num_key_value_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, config.num_key_value_heads * self.head_dim, bias=False)
        self.o_proj = Adapted(config.num_attention_heads * self.head_dim, hidden, bias=False)

    def forward(
        self, x: torch.Tensor, rope: tuple[torch.Tensor, ...], mask: Mask, drafting: torch.Tensor | None
    ) -> torch.Tensor:
        """What the tokens of `x` [B, T, hidden] add to the residual."""
        cos, sin, query_scale = rope
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = _rotate(q, cos, sin) * query_scale.to(q.dtype)
        attended = attend(q, _rotate(k, cos, sin), v, mask)
        return self.o_proj.add(attended.transpose(1, 2).flatten(2), drafting)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, intermediate, bias=False)
        self.up_proj = nn.Linear(hidden, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the tokens of `x` [B, T, hidden] add to the residual."""
        down: torch.Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return down


class Layer(nn.Module):
    """Attention and MLP, each over a normed copy of the residual."""

    def __init__(self, config: NemotronLabsDiffusionConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def forward(
        self, x: torch.Tensor, rope: tuple[torch.Tensor, ...], mask: Mask, drafting: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the residual after this layer."""
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, drafting)
        out: torch.Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Encoder(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: NemotronLabsDiffusionConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class DiffusionModel(nn.Module):
    """The whole network; `forward` returns normed hidden states, which `diffusion_head` turns into logits."""

    inv_freq: torch.Tensor

    def __init__(self, config: NemotronLabsDiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.mask_token_id = config.mask_token_id or 0
        self.encoder = Encoder(config)
        self.diffusion_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # The release's mscale equals its mscale_all_dim, so YaRN's factor on cos and sin is 1.
        inv_freq, self.rope_factor = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, mask: Mask, drafting: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the hidden states [B, T, hidden] of `tokens` [B, T] at `positions` [B, T].

        The adapter counts where `drafting` [B, T] holds.
        """
        x = self.encoder.embed_tokens(tokens)
        rope = self._rope(positions)
        for layer in self.encoder.layers:
            x = layer(x, rope, mask, drafting)
        hidden: torch.Tensor = self.encoder.norm(x)
        return hidden

    def initialise(self, seed: int) -> None:
        """Draw random weights, smaller where projections write the residual so that depth does not amplify it."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                std = 0.5 if "embed" in name else weight.shape[1] ** -0.5
                std *= (2 * self.config.num_hidden_layers) ** -0.5 if name.endswith(_WRITES_RESIDUAL) else 1.0
                weight.data.copy_(torch.randn(weight.shape, generator=generator) * std)
        self.hold_constant_channel()

    @torch.no_grad()
    def hold_constant_channel(self) -> None:
        """Restore the constant channel after an update that ignored it."""
        self.encoder.embed_tokens.weight[:, CONSTANT_CHANNEL] = 1.0
        self.encoder.norm.weight[CONSTANT_CHANNEL] = 1.0
        for name, weight in self.named_parameters():
            if name.endswith((*_WRITES_RESIDUAL, "lora_B")):
                weight[CONSTANT_CHANNEL] = 0.0

    def adapt(self, rank: int, alpha: float, seed: int = 0) -> list[nn.Parameter]:
        """Give every output projection a draft adapter and freeze the rest. Return the parameters left to train."""
        self.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        for o_proj in self.adapted():
            o_proj.adapt(rank, alpha, generator)
        return [weight for o_proj in self.adapted() for weight in (o_proj.lora_A, o_proj.lora_B)]

    def adapted(self) -> list[Adapted]:
        """Return the projections that can carry an adapter, layer by layer."""
        return [module for module in self.modules() if isinstance(module, Adapted)]

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Disable the adapter within this context."""
        scales = [o_proj.scale for o_proj in self.adapted()]
        for o_proj in self.adapted():
            o_proj.scale = None
        try:
            yield
        finally:
            for o_proj, scale in zip(self.adapted(), scales, strict=True):
                o_proj.scale = scale

    def _rope(self, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return cos and sin [B, 1, T, head_dim] and the Llama-4 query scale [B, 1, T, 1] for `positions` [B, T]."""
        angles = (positions[..., None].float() * self.inv_freq)[:, None].repeat(1, 1, 1, 2)
        rope = self.config.rope_parameters
        periods = (positions / rope["original_max_position_embeddings"]).floor()
        query_scale = 1 + rope["llama_4_scaling_beta"] * torch.log1p(periods)
        return angles.cos() * self.rope_factor, angles.sin() * self.rope_factor, query_scale[:, None, :, None]


_WRITES_RESIDUAL = ("o_proj.weight", "down_proj.weight")


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return the rotary embedding of `x` [B, H, T, D], the halves of D paired."""
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)
