"""Where a token is decided: every way in which logits become tokens.

| how | where |
|---|---|
| greedy: the most likely token but the mask, with its confidence | `TokenChoice.greedy` |
| sampled: Gumbel-max by (seed, position, token id) | `TokenChoice.sample`, `TokenChoice.draw_` |
| in a random order: confidences replaced by chance | `TokenChoice.draw_` |
| drafted and verified: as many as the model itself would have chosen | `accepted_lens` |

Which masks of a block take their token in which forward is `denoise`. On a GPU the block advance of
`commit.causal`, `accepted_lens` included, runs as one kernel, `dlm_kernels.block_advance`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from dlm_kernels.token_confidence import token_confidence

from dlm_serve.decoding.sampling import Nucleus, Sampling, noisy_scores, random_confidence, scaled

_ROWS_AT_ONCE = 64
"""Rows of logits that are sampled together: noise takes many times their memory."""


@dataclass(frozen=True)
class Prediction:
    """What the logits of B rows of W positions say."""

    ids: torch.Tensor  # [B, W] int64, the chosen tokens
    confidence: torch.Tensor  # [B, W] float32, probability of `ids` before temperature
    entropy: torch.Tensor  # [B, W] float32, nats, of the same distribution

    def select(self, rows: slice) -> Prediction:
        """Return views of the rows `rows`."""
        return Prediction(self.ids[rows], self.confidence[rows], self.entropy[rows])


@dataclass(frozen=True)
class DrawnRows:
    """The rows of a forward whose tokens are left to chance; None where there are none."""

    sampled: torch.Tensor | None = None  # [N] int64: tokens are sampled
    shuffled: torch.Tensor | None = None  # [N] int64: masks are filled in a random order

    @property
    def any(self) -> bool:
        """Return whether there are any."""
        return self.sampled is not None or self.shuffled is not None

    def repeat(self, times: int) -> DrawnRows:
        """Return the rows where each row stands `times` times."""

        def spread(rows: torch.Tensor | None) -> torch.Tensor | None:
            if rows is None:
                return None
            return (rows[:, None] * times + torch.arange(times, device=rows.device)).flatten()

        return DrawnRows(spread(self.sampled), spread(self.shuffled))


@dataclass(frozen=True)
class TokenChoice:
    """A family's rules for choosing tokens. The mask is never chosen."""

    mask_token_id: int
    mask_in_denominator: bool = True
    """Whether confidences count the mask's share of the probability, which no token can take."""
    nucleus: Nucleus = Nucleus.REACHING
    """What top-p means."""

    def greedy(self, logits: torch.Tensor) -> Prediction:
        """Return the most likely tokens for `logits` [B, W, V] of any floating type (the model card's `generate`)."""
        ids, confidence, entropy = token_confidence(
            logits.flatten(0, 1), self.mask_token_id, exclude_from_denominator=not self.mask_in_denominator
        )
        shape = logits.shape[:2]
        return Prediction(ids.view(shape), confidence.view(shape), entropy.view(shape))

    def draw_(
        self,
        prediction: Prediction,
        logits: torch.Tensor,
        positions: torch.Tensor,
        sampling: Sampling,
        drawn: DrawnRows,
    ) -> None:
        """Write into the greedy `prediction` of `logits` [B, W, V] what chance decides for the rows of `drawn`.

        `positions` [B, W] are where the tokens will stand; `sampling` has one row for each of the B rows.
        """
        if drawn.sampled is not None:
            self._sample_(prediction, logits, positions, sampling, drawn.sampled)
        if drawn.shuffled is not None:
            at = drawn.shuffled
            prediction.confidence[at] = random_confidence(sampling.seed[at], positions[at])

    def _sample_(
        self,
        prediction: Prediction,
        logits: torch.Tensor,
        positions: torch.Tensor,
        sampling: Sampling,
        at: torch.Tensor,
    ) -> None:
        """Sample the rows `at` [N] int64; their confidences become those of the sampled tokens."""
        width = logits.shape[1]
        flat, best = logits[at].flatten(0, 1), prediction.ids[at].flatten()
        ids = self.sample(flat, positions[at].flatten(), sampling.select(at).repeat(width))
        below_best = flat.gather(1, ids[:, None]).float() - flat.gather(1, best[:, None]).float()
        prediction.ids[at] = ids.view(-1, width)
        prediction.confidence[at] = prediction.confidence[at] * below_best.view(-1, width).exp()

    def sample(self, logits: torch.Tensor, positions: torch.Tensor, sampling: Sampling) -> torch.Tensor:
        """Return one token id [N] int64 for each row of `logits` [N, V], to stand at `positions` [N]."""
        if sampling.all_greedy:
            return self._without_mask(logits).argmax(-1)
        chunks = [slice(start, start + _ROWS_AT_ONCE) for start in range(0, logits.shape[0], _ROWS_AT_ONCE)]
        return torch.cat([self._sample(logits[part], positions[part], sampling.select(part)) for part in chunks])

    def scores(self, logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
        """Return log-probabilities [N, V] float32, up to a constant per row, that `sample` draws from if not greedy."""
        return scaled(self._without_mask(logits), sampling, self.nucleus)

    def _sample(self, logits: torch.Tensor, positions: torch.Tensor, sampling: Sampling) -> torch.Tensor:
        allowed = self._without_mask(logits)
        noisy = noisy_scores(scaled(allowed, sampling, self.nucleus), positions, sampling.seed).argmax(-1)
        return torch.where(sampling.top_k <= 1, allowed.argmax(-1), noisy)

    def _without_mask(self, logits: torch.Tensor) -> torch.Tensor:
        scores = logits.float().clone()
        scores[:, self.mask_token_id] = float("-inf")
        return scores


def accepted_lens(agrees: torch.Tensor) -> torch.Tensor:
    """Return the acceptance length [B] int64 of drafts, the model's own token behind them included.

    `agrees` [B, N] bool says which drafted tokens the model itself would have chosen, given those before them.
    """
    return 1 + agrees.long().cumprod(1).sum(1)
