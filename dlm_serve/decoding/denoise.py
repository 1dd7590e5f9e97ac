"""Denoise a block: which masks a forward's predictions fix, and when nothing is left to fix.

Semantics: the denoising loop of `generate` of Nemotron-Labs-Diffusion, which Efficient-DLM shares, and the samplers
of BD3-LM (`_ddpm_caching_update` of `diffusion.py`).
"""

from __future__ import annotations

from enum import StrEnum

import torch

from dlm_serve.decoding.modes import Phase
from dlm_serve.decoding.rows import Rows
from dlm_serve.decoding.token_choice import Prediction


class BlockAlgorithm(StrEnum):
    """Which masks of a block a forward fills, where a family leaves the choice."""

    FIRST_HITTING = "first_hitting"
    """As many at random as the schedule of steps says: one, if it does not. The sampler of BD3-LM's authors."""
    THRESHOLD = "threshold"
    """All that are sure enough, and always the surest."""
    CONFIDENCE = "confidence"
    """As many of the surest as the schedule says: one, if it does not."""


def is_denoising(phase: torch.Tensor) -> torch.Tensor:
    """Return whether rows in `phase` [B] fill masks, [B] bool."""
    return (phase == Phase.DENOISE) | (phase == Phase.DRAFT)


def denoise(
    rows: Rows,
    prediction: Prediction,
    mask_token_id: int,
    num_masks: torch.Tensor,
    first_column: int | torch.Tensor = 0,
) -> Rows:
    """Return `rows` with the masks filled that this step fixes; a block without masks goes on to its next phase.

    `num_masks` [B] is how many masks a block has that begins with none of its tokens given. Only stop ids at
    `first_column` (one for all or [B]) and behind it end the denoising.
    """
    masked = (rows.tokens == mask_token_id) & (rows.columns < rows.new_len[:, None])
    mean_entropy = (prediction.entropy * masked).sum(1) / masked.sum(1)
    converged = (mean_entropy - rows.mean_entropy).abs() < rows.convergence_threshold
    final = converged | (rows.step + 1 >= rows.steps)
    fixed = masked & (_is_selected(rows, prediction.confidence, masked, num_masks) | final[:, None])

    tokens = torch.where(fixed, prediction.ids, rows.tokens)
    still_masked = masked & ~fixed
    denoising = rows.phase == Phase.DENOISE
    settled = ~still_masked.any(1) | (denoising & _reaches_stop(rows, tokens, still_masked, first_column))
    next_phase = torch.where(denoising, Phase.DENOISE.after_denoising, Phase.DRAFT.after_denoising).to(torch.int32)
    return rows.replace(
        tokens=tokens,
        phase=torch.where(settled, next_phase, rows.phase),
        step=rows.step + 1,
        mean_entropy=mean_entropy.to(torch.float32),
    )


def first_stop(rows: Rows, tokens: torch.Tensor, first_column: int | torch.Tensor = 0) -> torch.Tensor:
    """Return the column [B] of the first stop id at or behind `first_column`, or the width where there is none."""
    start = first_column[:, None] if isinstance(first_column, torch.Tensor) else first_column
    is_stop = (tokens[:, :, None] == rows.stop_ids[:, None, :]).any(-1)
    is_stop &= (rows.columns >= start) & (rows.columns < rows.new_len[:, None])
    return torch.where(is_stop, rows.columns, rows.width).amin(1)


def _is_selected(rows: Rows, confidence: torch.Tensor, masked: torch.Tensor, num_masks: torch.Tensor) -> torch.Tensor:
    """Return the masks to fix in this step [B, W]: the surest up to the quota, and all that reach the threshold.

    With a threshold the quota is 1; without one, the block's masks are split evenly over its steps,
    the earlier steps taking the remainder.
    """
    scheduled = num_masks // rows.steps + (rows.step < num_masks % rows.steps)
    quota = torch.where(rows.threshold.isinf(), scheduled, 1)
    order = confidence.masked_fill(~masked, float("-inf")).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    return (rank < quota[:, None]) | (confidence >= rows.threshold[:, None])


def _reaches_stop(
    rows: Rows, tokens: torch.Tensor, still_masked: torch.Tensor, first_column: int | torch.Tensor
) -> torch.Tensor:
    """Return whether all tokens up to a stop id are known [B]: what follows it cannot matter."""
    stop = first_stop(rows, tokens, first_column)
    open_before = (still_masked & (rows.columns < stop[:, None])).any(1)
    return (stop < rows.width) & ~open_before
