"""Where a token is decided: every way in which logits become tokens.

| how | where |
|---|---|
| the most likely token but the mask, or one drawn by (seed, position, token id) | `dlm_kernels.sample_token` |
| for the rows of a block forward, each with its own settings | `TokenChoice.predict` |
| for autoregressive rows in the engine's own decode | `TokenChoice.sample` |
| in a random order: confidences replaced by chance | `random_confidence` |
| drafted and verified: as many as the model itself would have chosen | `accepted_lens` |

Which masks of a block take their token in which forward is `denoise`. On a GPU the block advance of
`commit.causal`, `accepted_lens` included, runs as one kernel, `dlm_kernels.block_advance`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from dlm_kernels.sample_token import Nucleus, Sampling, sample_token
from dlm_kernels.sample_token.reference import mix, noise_bits

from dlm_serve.decoding.rows import Rows

_NO_TOKEN = 0xFFFFFFFF
"""In place of a token id, for noise that belongs to a position."""


@dataclass(frozen=True)
class Prediction:
    """What the logits of B rows of W positions say."""

    ids: torch.Tensor  # [B, W] int64, the chosen tokens
    confidence: torch.Tensor  # [B, W] float32, probability of `ids` before temperature
    entropy: torch.Tensor  # [B, W] float32, nats, of the same distribution
    second_ids: torch.Tensor  # [B, W] int64, what would be chosen without `ids`, if asked for; else `ids`

    def select(self, rows: slice) -> Prediction:
        """Return views of the rows `rows`."""
        return Prediction(self.ids[rows], self.confidence[rows], self.entropy[rows], self.second_ids[rows])

    def put_(self, rows: torch.Tensor, other: Prediction) -> None:
        """Overwrite the rows `rows` [N] int64 with `other`, N rows."""
        self.ids.index_copy_(0, rows, other.ids)
        self.confidence.index_copy_(0, rows, other.confidence)
        self.entropy.index_copy_(0, rows, other.entropy)
        self.second_ids.index_copy_(0, rows, other.second_ids)


@dataclass(frozen=True)
class TokenChoice:
    """A family's rules for choosing tokens. The mask is never chosen."""

    mask_token_id: int
    mask_in_denominator: bool = True
    """Whether confidences count the mask's share of the probability, which no token can take."""
    nucleus: Nucleus = Nucleus.REACHING
    """What top-p means."""
    may_shuffle: bool = False
    """Whether there are rows whose masks are filled in a random order."""
    with_second: bool = False
    """Whether predictions say what would be chosen second."""

    def predict(self, logits: torch.Tensor, positions: torch.Tensor, rows: Rows) -> Prediction:
        """Return the tokens of `rows` for `logits` [B, W, V] of any floating type, to stand at `positions` [B, W].

        Greedy ones are those of the model card's `generate`. The confidences of shuffled rows are random.
        """
        prediction = self._prediction(logits, positions, rows.sampling)
        if not self.may_shuffle:
            return prediction
        shuffled = random_confidence(rows.seed, positions)
        confidence = torch.where(rows.is_shuffled[:, None], shuffled, prediction.confidence)
        return replace(prediction, confidence=confidence)

    def greedy(self, logits: torch.Tensor) -> Prediction:
        """Return the most likely tokens for `logits` [B, W, V] of any floating type."""
        return self._prediction(logits, None, None)

    def sample(
        self, logits: torch.Tensor, positions: torch.Tensor | None = None, sampling: Sampling | None = None
    ) -> torch.Tensor:
        """Return one token id [N] int64 for each row of `logits` [N, V], to stand at `positions` [N].

        Without `sampling` it is the most likely one.
        """
        return sample_token(logits, positions, sampling, exclude_id=self.mask_token_id, nucleus=self.nucleus)[0]

    def _prediction(
        self, logits: torch.Tensor, positions: torch.Tensor | None, sampling: Sampling | None
    ) -> Prediction:
        found = sample_token(
            logits.flatten(0, 1),
            None if positions is None else positions.flatten(),
            sampling,
            exclude_id=self.mask_token_id,
            exclude_from_denominator=not self.mask_in_denominator,
            nucleus=self.nucleus,
            with_second=self.with_second,
        )
        return Prediction(*(tensor.view(logits.shape[:2]) for tensor in found))


def random_confidence(seed: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return uniform numbers [B, W] float32 as a function of `seed` [B] int64 and `positions` [B, W].

    In place of confidences they put masks in a random order: each of any set has the same chance to be the largest.
    """
    bits = mix(noise_bits(seed[:, None], positions) ^ _NO_TOKEN)
    return ((bits.double() + 0.5) / 2.0**32).float()


def accepted_lens(agrees: torch.Tensor) -> torch.Tensor:
    """Return the acceptance length [B] int64 of drafts, the model's own token behind them included.

    `agrees` [B, N] bool says which drafted tokens the model itself would have chosen, given those before them.
    """
    return 1 + agrees.long().cumprod(1).sum(1)
