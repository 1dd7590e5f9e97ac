"""Define readably which token is sampled.

Tokens are drawn by Gumbel-max with noise that depends on (seed, position, token id) and nothing else. So a draft and
its verification see the same noise, all ranks agree, a batch decodes as its rows would alone, and seeded
self-speculation emits the tokens of seeded autoregression.
"""

from __future__ import annotations

import torch

from dlm_kernels.sample_token.sampling import HOTTEST, Nucleus, Sampling

_UINT32 = 0xFFFFFFFF
_GOLDEN = 0x9E3779B1

_ROWS_AT_ONCE = 64
"""Rows of logits that are sampled together: noise takes many times their memory."""


def sample_token(
    logits: torch.Tensor,
    positions: torch.Tensor | None = None,
    sampling: Sampling | None = None,
    *,
    exclude_id: int,
    exclude_from_denominator: bool = False,
    nucleus: Nucleus = Nucleus.REACHING,
    with_second: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a token of each row of `logits` [N, V]: ids [N] int64, probability and entropy [N] float32, second ids.

    Without `sampling` it is the most likely one, and the lowest id wins a tie. With it, row n is drawn as `sampling`
    says in its row n // (N / R), to stand at `positions` [N]. `exclude_id` is never chosen. Probability and entropy
    (nats) are of the softmax over the row, before temperature and filters, and without `exclude_id` if
    `exclude_from_denominator`.

    With `with_second` the second ids [N] int64 are what would be chosen without the first: the second most likely
    tokens, or those with the second highest score under noise among the tokens that are kept. Where none is left, and
    without `with_second`, they are the first again.
    """
    excluded = torch.arange(logits.shape[1], device=logits.device) == exclude_id
    scores = logits.float()
    allowed = scores.masked_fill(excluded, float("-inf"))
    log_probs = (allowed if exclude_from_denominator else scores).log_softmax(-1)
    ids, second_ids = _best(allowed, with_second)
    if sampling is not None:
        assert positions is not None
        row_of = torch.arange(len(logits), device=logits.device) // (len(logits) // len(sampling.seed))
        drawn = (sampling.top_k[row_of] > 1).nonzero().squeeze(1)
        for part in torch.split(drawn, _ROWS_AT_ONCE):
            own = sampling.select(row_of[part])
            noise = gumbel_noise(own.seed, positions[part], logits.shape[1])
            ids[part], second_ids[part] = _best(kept_scores(allowed[part], own, nucleus) + noise, with_second)
    confidence = log_probs.gather(1, ids[:, None]).squeeze(1).exp()
    entropy = (log_probs.exp() * -log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1)
    return ids, confidence, entropy, second_ids


def _best(scores: torch.Tensor, with_second: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids [N] of the highest of `scores` [N, V], and of the second highest if that is wanted and finite."""
    first = scores.argmax(-1, keepdim=True)
    if not with_second:
        return first.squeeze(1), first.squeeze(1)
    others = scores.scatter(1, first, float("-inf"))
    second = others.argmax(-1, keepdim=True)
    second = torch.where(others.gather(1, second) > float("-inf"), second, first)
    return first.squeeze(1), second.squeeze(1)


def kept_scores(allowed: torch.Tensor, sampling: Sampling, nucleus: Nucleus) -> torch.Tensor:
    """Return the log-probabilities [N, V] float32, up to a constant per row, that N rows are drawn from.

    `allowed` [N, V] float32 are logits, -inf where a token is excluded. So is the result, also outside of the top-k,
    top-p and min-p sets.
    """
    scores = allowed / sampling.temperature[:, None].clamp(max=HOTTEST)
    values, order = scores.sort(dim=-1, descending=True)
    probs = values.double().softmax(-1)
    up_to = probs.cumsum(-1)
    # Of tokens with the same score, the first and the last in this order.
    first = torch.searchsorted(-values, -values)
    last = torch.searchsorted(-values, -values, right=True) - 1
    kept = first < sampling.top_k[:, None]
    kept &= values >= values[:, :1] + sampling.min_p[:, None].log()
    top_p = sampling.top_p[:, None]
    mass = (up_to - probs).gather(1, first) if nucleus is Nucleus.REACHING else up_to.gather(1, last)
    kept &= (mass <= top_p) | (top_p >= 1) | (first == 0)
    return scores.masked_fill(~torch.zeros_like(kept).scatter_(1, order, kept), float("-inf"))


def gumbel_noise(seed: torch.Tensor, positions: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Return standard Gumbel noise [N, V] float32 as a function of `seed` [N] int64, `positions` [N] and token id."""
    token = torch.arange(vocab_size, device=seed.device, dtype=torch.int64) * _GOLDEN & _UINT32
    uniform = (mix(noise_bits(seed, positions)[:, None] ^ token).double() + 0.5) / 2.0**32
    return -torch.log(-torch.log1p(-uniform)).float()


def noise_bits(seed: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return 32 random bits as int64, of the shape of `seed` and `positions`, and as a function of these."""
    row = mix(seed & _UINT32)
    row = mix(row ^ ((seed >> 32) & _UINT32))
    return mix(row ^ (positions.to(torch.int64) & _UINT32))


def mix(x: torch.Tensor) -> torch.Tensor:
    """Mix 32 bits on int64 lanes: golden-ratio step, then MurmurHash3's finaliser (A. Appleby, public domain)."""
    x = (x + 0x9E3779B9) & _UINT32
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _UINT32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _UINT32
    return x ^ (x >> 16)
