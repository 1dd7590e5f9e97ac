"""Compute what each phase of training minimises."""

from __future__ import annotations

import torch
from torch.nn import functional

from dlm_serve.training.config import ConvertPhase
from dlm_serve.training.layout import CLEAN, Mask
from dlm_serve.training.model import DiffusionModel
from dlm_serve.training.packing import PADDING, Batch

Losses = dict[str, torch.Tensor]
"""`loss` is minimised; the others are for the curves."""


def autoregressive_loss(model: DiffusionModel, batch: Batch, mask: Mask) -> Losses:
    """Return the mean cross-entropy of the answers' tokens in `batch.clean()`, each from what precedes it."""
    hidden = model(batch.tokens, batch.layout.position, mask)
    loss = _next_token_loss(model.diffusion_head(hidden), batch)
    return {"loss": loss, "ar_loss": loss.detach()}


def joint_loss(
    model: DiffusionModel, batch: Batch, mask: Mask, phase: ConvertPhase, generator: torch.Generator
) -> Losses:
    """Return ar_loss_weight L_AR + dlm_loss_weight L_diffusion, from one forward over [clean | noisy].

    L_diffusion is the mean cross-entropy of the masked tokens at their own positions, divided by their block's mask
    ratio if `phase` says so (the bound on the likelihood) (Nemotron-Labs-Diffusion, training recipe).
    """
    blocks = _noisy(batch.tokens, batch)
    masked, ratio = phase.masking.draw(blocks, generator)
    masked &= _noisy(batch.layout.document, batch) != PADDING
    tokens = _with_noisy(batch, torch.where(masked, model.mask_token_id, blocks))
    hidden = model(tokens, batch.layout.position, mask)
    logits = model.diffusion_head(hidden)
    ar_loss = _next_token_loss(logits[:, : batch.num_clean], batch)

    each = _cross_entropy(logits[:, batch.num_clean :], blocks.flatten(1)).view(blocks.shape)
    weight = masked / ratio if phase.weight_by_mask_ratio else masked.float()
    dlm_loss = (each * weight).sum() / masked.sum()
    loss = phase.ar_loss_weight * ar_loss + phase.dlm_loss_weight * dlm_loss
    return {"loss": loss, "ar_loss": ar_loss.detach(), "dlm_loss": dlm_loss.detach()}


def draft_loss(model: DiffusionModel, batch: Batch, mask: Mask) -> Losses:
    """Return the cross-entropy of one-shot drafts against the model's greedy tokens, as far as a verification reads.

    In each block all but the first token is masked, with the adapter on. The drafts that would be accepted and the
    first that would not count; later ones cannot matter.
    """
    blocks = _noisy(batch.tokens, batch)
    is_first = torch.arange(blocks.shape[-1], device=blocks.device) == 0
    tokens = _with_noisy(batch, torch.where(is_first, blocks, model.mask_token_id))
    drafting = batch.layout.block != CLEAN
    hidden = model(tokens, batch.layout.position, mask, drafting)
    greedy = model.diffusion_head(hidden[:, : batch.num_clean].detach()).argmax(-1)
    logits = model.diffusion_head(hidden[:, batch.num_clean :])

    # The verification's token at a place is the prediction of the place before it.
    inside = (batch.source != PADDING).view(blocks.shape)
    verified = greedy.gather(1, (batch.source - 1).clamp(min=0)).view(blocks.shape)
    matches = (logits.argmax(-1).view(blocks.shape) == verified) & (verified == blocks) & inside
    accepted = matches[..., 1:].long().cumprod(-1)
    reached = torch.cat((torch.ones_like(accepted[..., :1]), accepted[..., :-1]), dim=-1).bool() & inside[..., 1:]

    each = _cross_entropy(logits, verified.flatten(1)).view(blocks.shape)[..., 1:]
    loss = (each * reached).sum() / reached.sum()
    num_blocks = inside[..., 1].sum()
    return {"loss": loss, "draft_loss": loss.detach(), "accepted": accepted.sum() / num_blocks}


@torch.no_grad()
def autoregressive_kl(before: DiffusionModel, after: DiffusionModel, batch: Batch, mask: Mask) -> float:
    """Return the mean KL(before || after) of the autoregressive distributions, in nats per answer token."""
    log_p, log_q = (
        model.diffusion_head(model(batch.tokens, batch.layout.position, mask)).float().log_softmax(-1)
        for model in (before, after)
    )
    divergence = functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)[:, :-1]
    targets = batch.is_answer[:, 1:]
    return float((divergence * targets).sum() / targets.sum())


def _next_token_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the loss over the answers' tokens; an answer never starts a document, so each has a token before it."""
    targets = batch.is_answer[:, 1:]
    each = _cross_entropy(logits[:, :-1], batch.tokens[:, 1 : batch.num_clean])
    return (each * targets).sum() / targets.sum()


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy [B, T] in nats for `logits` [B, T, V]."""
    return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view(
        targets.shape
    )


def _noisy(per_token: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the noisy part of [B, T] as blocks [B, K, S]."""
    return per_token[:, batch.num_clean :].view(len(per_token), -1, batch.block_size)


def _with_noisy(batch: Batch, blocks: torch.Tensor) -> torch.Tensor:
    """Return the tokens of `batch` with other noisy blocks [B, K, S]."""
    return torch.cat((batch.tokens[:, : batch.num_clean], blocks.flatten(1)), dim=1)
