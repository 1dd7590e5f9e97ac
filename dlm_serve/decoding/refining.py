"""Refining a block: which masks a forward's predictions fix, and when nothing is left to fix.

Semantics: the denoising loop of `generate` of Nemotron-Labs-Diffusion, which Efficient-DLM shares.
"""

from __future__ import annotations

import torch

from dlm_serve.decoding.phase import Phase
from dlm_serve.decoding.rows import Rows
from dlm_serve.decoding.sampling import Prediction


def is_refining(phase: torch.Tensor) -> torch.Tensor:
    """Whether rows in `phase` [B] fill masks, [B] bool."""
    return (phase == Phase.DENOISE) | (phase == Phase.DRAFT)


def columns_of(rows: Rows) -> torch.Tensor:
    """The column numbers [1, W]."""
    return torch.arange(rows.width, device=rows.tokens.device)[None, :]


def refine(
    rows: Rows,
    prediction: Prediction,
    mask_token_id: int,
    num_masks: torch.Tensor,
    first_column: int | torch.Tensor = 0,
) -> Rows:
    """Fill the masks that this step fixes; a block with nothing left to refine goes on to the phase behind it.

    `num_masks` [B] is how many masks a block has that begins with none of its tokens given. Only stop ids at
    `first_column` (one for all or [B]) and behind it end the denoising.
    """
    masked = (rows.tokens == mask_token_id) & (columns_of(rows) < rows.new_len[:, None])
    mean_entropy = (prediction.entropy * masked).sum(1) / masked.sum(1)
    converged = (mean_entropy - rows.mean_entropy).abs() < rows.convergence_threshold
    final = converged | (rows.step + 1 >= rows.steps)
    fixed = masked & (_is_selected(rows, prediction.confidence, masked, num_masks) | final[:, None])

    tokens = torch.where(fixed, prediction.ids, rows.tokens)
    still_masked = masked & ~fixed
    denoising = rows.phase == Phase.DENOISE
    settled = ~still_masked.any(1) | (denoising & _reaches_stop(rows, tokens, still_masked, first_column))
    next_phase = torch.where(denoising, Phase.DENOISE.after_refining, Phase.DRAFT.after_refining).to(torch.int32)
    return rows.replace(
        tokens=tokens,
        phase=torch.where(settled, next_phase, rows.phase),
        step=rows.step + 1,
        mean_entropy=mean_entropy.to(torch.float32),
    )


def first_stop(rows: Rows, tokens: torch.Tensor, first_column: int | torch.Tensor = 0) -> torch.Tensor:
    """The column of the first stop id at or behind `first_column` in each row [B], or the width where there is none."""
    columns = columns_of(rows)
    start = first_column[:, None] if isinstance(first_column, torch.Tensor) else first_column
    is_stop = (tokens[:, :, None] == rows.stop_ids[:, None, :]).any(-1)
    is_stop &= (columns >= start) & (columns < rows.new_len[:, None])
    return torch.where(is_stop, columns, rows.width).amin(1)


def _is_selected(rows: Rows, confidence: torch.Tensor, masked: torch.Tensor, num_masks: torch.Tensor) -> torch.Tensor:
    """Masks to fix in this step [B, W]: the most confident ones up to the quota, and all that reach the threshold.

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
    """Whether all tokens up to a stop id are known [B]: what follows it cannot matter."""
    stop = first_stop(rows, tokens, first_column)
    open_before = (still_masked & (columns_of(rows) < stop[:, None])).any(1)
    return (stop < rows.width) & ~open_before
