"""Sampling: Gumbel-max with noise that depends on (seed, position, token id) and nothing else.

So a draft and its verification see the same noise, all ranks agree, a batch decodes as its rows would alone, and
seeded self-speculation emits the tokens of seeded autoregression. The emitted token is always the verification's own
sample, so its distribution is exactly the autoregressive one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

import torch

_UINT32 = 0xFFFFFFFF

_NO_TOKEN = _UINT32
"""In place of a token id, for noise that belongs to a position."""


class Nucleus(StrEnum):
    """Which tokens top-p keeps, of those in descending order of their probabilities."""

    REACHING = "reaching"
    """As many as it takes to reach p."""
    WITHIN = "within"
    """As many as stay within p, and always the first (reference: `_nucleus_sample` of BD3-LM's `diffusion.py`)."""


@dataclass(frozen=True)
class Sampling:
    """How N positions are sampled. `top_k` 1 means greedy. The flags let a batch skip work it does not need."""

    temperature: torch.Tensor  # [N] float32, > 0
    top_k: torch.Tensor  # [N] int32, >= 1
    top_p: torch.Tensor  # [N] float32, in (0, 1]
    min_p: torch.Tensor  # [N] float32, in [0, 1]
    seed: torch.Tensor  # [N] int64
    all_greedy: bool
    needs_filter: bool

    def repeat(self, times: int) -> Sampling:
        """Return each row `times` times, for rows of several positions."""
        return self._map(lambda tensor: tensor.repeat_interleave(times))

    def select(self, rows: slice | torch.Tensor) -> Sampling:
        """Return the rows `rows`, a slice or [M] int64."""
        return self._map(lambda tensor: tensor[rows])

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Sampling:
        return replace(
            self,
            temperature=change(self.temperature),
            top_k=change(self.top_k),
            top_p=change(self.top_p),
            min_p=change(self.min_p),
            seed=change(self.seed),
        )


def noisy_scores(scores: torch.Tensor, positions: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """Return `scores` [N, V] float32 under the noise of `seed` [N] at `positions` [N]: their argmax is a sample."""
    return scores + gumbel_noise(seed, positions, scores.shape[1])


def scaled(allowed: torch.Tensor, sampling: Sampling, nucleus: Nucleus) -> torch.Tensor:
    """Return the log-probabilities, up to a constant per row, that `sampling` draws from.

    `allowed` [N, V] float32 are logits, -inf where a token is excluded. So is the result, also outside of the top-k,
    top-p and min-p sets.
    """
    scores = allowed / sampling.temperature[:, None]
    return _filter(scores, sampling, nucleus) if sampling.needs_filter else scores


def random_confidence(seed: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return uniform numbers [B, W] float32 as a function of `seed` [B] int64 and `positions` [B, W].

    In place of confidences they put masks in a random order: each of any set has the same chance to be the largest.
    """
    bits = _mix(_noise_rows(seed[:, None], positions) ^ _NO_TOKEN)
    return ((bits.double() + 0.5) / 2.0**32).float()


def gumbel_noise(seed: torch.Tensor, positions: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Return standard Gumbel noise [N, V] float32 as a function of `seed` [N] int64, `positions` [N] and token id."""
    row = _noise_rows(seed, positions)
    token = _mix(torch.arange(vocab_size, device=seed.device, dtype=torch.int64))
    bits = _mix(row[:, None] ^ token[None, :])
    uniform = (bits.double() + 0.5) / 2.0**32
    return -torch.log(-torch.log(uniform)).float()


def _noise_rows(seed: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return the noise of all tokens at `positions`, before a token is mixed in."""
    row = _mix(seed & _UINT32)
    row = _mix(row ^ ((seed >> 32) & _UINT32))
    return _mix(row ^ (positions.to(torch.int64) & _UINT32))


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Mix 32 bits on int64 lanes: golden-ratio step, then MurmurHash3's finaliser (A. Appleby, public domain)."""
    x = (x + 0x9E3779B9) & _UINT32
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _UINT32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _UINT32
    return x ^ (x >> 16)


def _filter(scores: torch.Tensor, sampling: Sampling, nucleus: Nucleus) -> torch.Tensor:
    """Return -inf outside the top-k, top-p and min-p sets, each taken on the whole distribution, as SGLang does."""
    probs, order = scores.softmax(-1).sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(scores.shape[1], device=scores.device)
    dropped = rank >= sampling.top_k[:, None]
    dropped |= _outside_nucleus(probs, sampling.top_p[:, None], nucleus)
    dropped |= probs < probs[:, :1] * sampling.min_p[:, None]
    return scores.masked_fill(torch.zeros_like(dropped).scatter_(1, order, dropped), float("-inf"))


def _outside_nucleus(probs: torch.Tensor, top_p: torch.Tensor, nucleus: Nucleus) -> torch.Tensor:
    """Return which of `probs` [N, V], in descending order, `top_p` [N, 1] drops."""
    if nucleus is Nucleus.REACHING:
        return probs.cumsum(-1) - probs > top_p
    outside = (probs.double().cumsum(-1) > top_p) & (top_p < 1)  # where rounding takes all beyond 1, 1 is no cut
    outside[:, 0] = False
    return outside
