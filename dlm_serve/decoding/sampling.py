"""Choosing tokens from logits: Gumbel-max with noise that depends on (seed, position, token) only.

Because nothing else enters the noise, a draft and its verification see the same noise, all ranks
agree, a batch decodes as its rows would alone, and seeded self-speculation emits the tokens of
seeded autoregression. The emitted token is always the verification's own sample, so its
distribution is exactly the autoregressive one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from dlm_kernels.token_confidence import token_confidence

_UINT32 = 0xFFFFFFFF

_NO_TOKEN = _UINT32
"""In place of a token id, for noise that belongs to a position."""

_ROWS_AT_ONCE = 64
"""Rows of logits that are sampled together: noise takes many times their memory."""


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
    nucleus: Nucleus = Nucleus.REACHING

    def repeat(self, times: int) -> Sampling:
        """Each row `times` times, for rows of several positions."""
        return self._map(lambda tensor: tensor.repeat_interleave(times))

    def select(self, rows: slice | torch.Tensor) -> Sampling:
        """Only these rows."""
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


@dataclass(frozen=True)
class Prediction:
    """What the logits of B rows of W positions say."""

    ids: torch.Tensor  # [B, W] int64, the chosen tokens
    confidence: torch.Tensor  # [B, W] float32, probability of `ids` before temperature
    entropy: torch.Tensor  # [B, W] float32, nats, of the same distribution


def predict(logits: torch.Tensor, mask_token_id: int, *, mask_in_denominator: bool = True) -> Prediction:
    """The most likely tokens for `logits` [B, W, V] of any floating type, with their confidences and entropies.

    The mask is never chosen, but counts in the denominator unless a family's policy says otherwise
    (reference: `generate` of the model card).
    """
    ids, confidence, entropy = token_confidence(
        logits.flatten(0, 1), mask_token_id, exclude_from_denominator=not mask_in_denominator
    )
    shape = logits.shape[:2]
    return Prediction(ids.view(shape), confidence.view(shape), entropy.view(shape))


def resample(
    prediction: Prediction, logits: torch.Tensor, positions: torch.Tensor, sampling: Sampling, mask_token_id: int
) -> Prediction:
    """`prediction` of `logits` [B, W, V] with tokens sampled to stand at `positions` [B, W].

    `sampling` has one row for each of the B rows. Confidences are those of the sampled tokens.
    """
    flat, best = logits.flatten(0, 1), prediction.ids.flatten()
    ids = sample(flat, positions.flatten(), sampling.repeat(logits.shape[1]), mask_token_id)
    below_best = flat.gather(1, ids[:, None]).float() - flat.gather(1, best[:, None]).float()
    confidence = prediction.confidence * below_best.view_as(prediction.ids).exp()
    return replace(prediction, ids=ids.view_as(prediction.ids), confidence=confidence)


def sample(logits: torch.Tensor, positions: torch.Tensor, sampling: Sampling, mask_token_id: int) -> torch.Tensor:
    """One token id [N] for each row of `logits` [N, V], to stand at `positions` [N]; never the mask."""
    if sampling.all_greedy:
        return _without_mask(logits, mask_token_id).argmax(-1)
    chunks = [slice(start, start + _ROWS_AT_ONCE) for start in range(0, logits.shape[0], _ROWS_AT_ONCE)]
    return torch.cat(
        [_sample(logits[chunk], positions[chunk], sampling.select(chunk), mask_token_id) for chunk in chunks]
    )


def _sample(logits: torch.Tensor, positions: torch.Tensor, sampling: Sampling, mask_token_id: int) -> torch.Tensor:
    allowed = _without_mask(logits, mask_token_id)
    scores = _scaled(allowed, sampling)
    noisy = (scores + gumbel_noise(sampling.seed, positions, scores.shape[1])).argmax(-1)
    return torch.where(sampling.top_k <= 1, allowed.argmax(-1), noisy)


def scores_of(logits: torch.Tensor, sampling: Sampling, mask_token_id: int) -> torch.Tensor:
    """Log-probabilities [N, V] float32, up to a constant per row, of what `sample` draws from if it is not greedy."""
    return _scaled(_without_mask(logits, mask_token_id), sampling)


def _without_mask(logits: torch.Tensor, mask_token_id: int) -> torch.Tensor:
    scores = logits.float().clone()
    scores[:, mask_token_id] = float("-inf")
    return scores


def _scaled(allowed: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    scores = allowed / sampling.temperature[:, None]
    return _filter(scores, sampling) if sampling.needs_filter else scores


def random_confidence(seed: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Uniform numbers [B, W] float32 as a function of `seed` [B] int64 and `positions` [B, W].

    In place of confidences they put masks in a random order: the largest of any of them is each with equal chance.
    """
    bits = _mix(_noise_rows(seed[:, None], positions) ^ _NO_TOKEN)
    return ((bits.double() + 0.5) / 2.0**32).float()


def gumbel_noise(seed: torch.Tensor, positions: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Standard Gumbel noise [N, V] float32 as a function of `seed` [N] int64, `positions` [N] and token id."""
    row = _noise_rows(seed, positions)
    token = _mix(torch.arange(vocab_size, device=seed.device, dtype=torch.int64))
    bits = _mix(row[:, None] ^ token[None, :])
    uniform = (bits.double() + 0.5) / 2.0**32
    return -torch.log(-torch.log(uniform)).float()


def _noise_rows(seed: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The noise of all tokens at `positions`, before a token is mixed in."""
    row = _mix(seed & _UINT32)
    row = _mix(row ^ ((seed >> 32) & _UINT32))
    return _mix(row ^ (positions.to(torch.int64) & _UINT32))


def _mix(x: torch.Tensor) -> torch.Tensor:
    """A 32-bit finaliser on int64 lanes: golden-ratio step, then that of MurmurHash3 (A. Appleby, public domain)."""
    x = (x + 0x9E3779B9) & _UINT32
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _UINT32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _UINT32
    return x ^ (x >> 16)


def _filter(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """-inf outside the top-k, top-p and min-p sets, each taken on the whole distribution, as SGLang does."""
    probs, order = scores.softmax(-1).sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(scores.shape[1], device=scores.device)
    dropped = rank >= sampling.top_k[:, None]
    dropped |= _outside_nucleus(probs, sampling)
    dropped |= probs < probs[:, :1] * sampling.min_p[:, None]
    return scores.masked_fill(torch.zeros_like(dropped).scatter_(1, order, dropped), float("-inf"))


def _outside_nucleus(probs: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Which of `probs` [N, V], in descending order, top-p drops."""
    top_p = sampling.top_p[:, None]
    if sampling.nucleus is Nucleus.REACHING:
        return probs.cumsum(-1) - probs > top_p
    outside = (probs.double().cumsum(-1) > top_p) & (top_p < 1)  # where rounding takes all beyond 1, 1 is no cut
    outside[:, 0] = False
    return outside
