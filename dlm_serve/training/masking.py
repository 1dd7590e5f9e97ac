"""Draw which tokens of a block are masked: the forward process of block diffusion.

The first token of a block is the pending token, which is always known in decoding, and is never masked.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

_MIN_RATIO = 1e-3


class _Masking(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HalfLifeMasking(_Masking):
    """A ratio m ~ U(0.001, 1) per block; of its n maskable tokens round(m n) are drawn with weights
    exp(ln2 (1 - m) i / (half_life_ratio n)): the later the likelier, as decoding leaves them (Efficient-DLM).
    """

    form: Literal["half_life"] = "half_life"
    half_life_ratio: float = Field(default=0.1, gt=0)

    def draw(self, blocks: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return for `blocks` [B, K, S] which tokens are masked [B, K, S], and the ratios [B, K, 1]."""
        ratio = _draw_ratio(blocks, generator)
        slope = math.log(2) * (1 - ratio) / (self.half_life_ratio * (blocks.shape[-1] - 1))
        return _draw_weighted(blocks, ratio, slope, generator), ratio


class UniformMasking(_Masking):
    """The same number of tokens, each equally likely."""

    form: Literal["uniform"] = "uniform"

    def draw(self, blocks: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw as HalfLifeMasking.draw does."""
        ratio = _draw_ratio(blocks, generator)
        return _draw_weighted(blocks, ratio, torch.zeros_like(ratio), generator), ratio


class LinearMasking(_Masking):
    """Token i of n is masked with probability clamp(decay^step * linspace(0.2, 1, n)[i], 0, 0.95), step ~ U{0..n-1}."""

    form: Literal["linear"] = "linear"
    decay: float = Field(default=0.9, gt=0, le=1)

    def draw(self, blocks: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw as HalfLifeMasking.draw does; the ratio is the mean probability."""
        num_maskable = blocks.shape[-1] - 1
        step = torch.randint(num_maskable, (*blocks.shape[:2], 1), generator=generator, device=blocks.device)
        probability = (self.decay**step) * torch.linspace(0.2, 1.0, num_maskable, device=blocks.device)
        probability = probability.clamp(0.0, 0.95)
        masked = torch.rand(probability.shape, generator=generator, device=blocks.device) < probability
        return _behind_first(masked), probability.mean(-1, keepdim=True)


Masking = Annotated[HalfLifeMasking | UniformMasking | LinearMasking, Field(discriminator="form")]


def _draw_ratio(blocks: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    uniform = torch.rand((*blocks.shape[:2], 1), generator=generator, device=blocks.device)
    return _MIN_RATIO + (1 - _MIN_RATIO) * uniform


def _draw_weighted(
    blocks: torch.Tensor, ratio: torch.Tensor, slope: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Draw round(ratio n) of the n maskable tokens, at least one, without replacement, with weights exp(slope i)."""
    num_maskable = blocks.shape[-1] - 1
    index = torch.arange(num_maskable, device=blocks.device)
    uniform = torch.rand((*blocks.shape[:2], num_maskable), generator=generator, device=blocks.device)
    keys = slope * index - (-uniform.clamp(1e-12, 1 - 1e-7).log()).log()  # Gumbel top-k
    rank = keys.argsort(dim=-1, descending=True).argsort(dim=-1)
    return _behind_first(rank < (ratio * num_maskable).round().clamp(min=1))


def _behind_first(masked: torch.Tensor) -> torch.Tensor:
    """Extend [B, K, S - 1] to [B, K, S]: the pending token in front is not masked."""
    return torch.cat((torch.zeros_like(masked[..., :1]), masked), dim=-1)
