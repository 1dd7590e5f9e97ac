"""Define token confidence readably."""

from __future__ import annotations

import torch


def token_confidence(
    logits: torch.Tensor, exclude_id: int, exclude_from_denominator: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the best token of each row of `logits` [N, V]: ids [N] int64, probability and entropy [N] float32.

    `exclude_id` is never the best, the lowest id wins a tie. Probability and entropy (nats) are of the
    softmax over the row, without `exclude_id` if `exclude_from_denominator`.
    """
    excluded = torch.arange(logits.shape[1], device=logits.device) == exclude_id
    scores = logits.float()
    allowed = scores.masked_fill(excluded, float("-inf"))
    log_probs = (allowed if exclude_from_denominator else scores).log_softmax(-1)
    ids = allowed.argmax(-1)
    confidence = log_probs.gather(1, ids[:, None]).squeeze(1).exp()
    return ids, confidence, torch.special.entr(log_probs.exp()).sum(-1)
