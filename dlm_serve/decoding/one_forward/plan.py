"""Choose how many tokens of a draft enter a forward, and what stands behind each of them.

A token of a row is worth the probability that it saves a forward of its own. A drafted token is reached if all before
it are right, which their confidences say. A mask behind a token of the chain is used if verification stops there, and
the less likely the further it stands behind. A second choice is right if verification stops there and finds it. The
tokens with the highest worth share the row: all that are worth a price at least, which is lowered until it is full.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dlm_serve.decoding.denoise import first_stop
from dlm_serve.decoding.rows import Rows

LONGEST_CHAIN = 32
"""Tokens of a chain, and of a group with the token that it stands behind: as many as models are trained to draft."""
SURVIVAL = 0.95
"""How likely a fresh draft is still right one position further. Acceptance depends little on it."""
AFTER_A_MISS = 0.5
"""What confidences are worth in a draft whose first tokens were others than those that follow now."""
MOST_SURE = 0.999
"""The highest confidence that is believed."""
CHOSEN = 1 / AFTER_A_MISS
"""In place of the confidence of a token that the model itself has chosen: it counts in full in any draft."""
SECOND_IS_RIGHT = 0.4
"""How likely the second choice is right where the first is not."""
_HALVINGS = 16


@dataclass(frozen=True)
class GroupPlan:
    """What enters a forward of B rows: the first `num_main` tokens of each, and the masks behind them."""

    num_main: torch.Tensor  # [B] int64
    num_masks: torch.Tensor  # [B, C] int64, behind each of the first C tokens; 0 where no group stands
    has_second: torch.Tensor  # [B, C] bool: the second choice for what follows stands behind it, too


@dataclass(frozen=True)
class _Draft:
    """What the rows hold in the C columns that a chain may have, as the planner sees it."""

    reach: torch.Tensor  # [B, C] float32: how likely all tokens up to this one are right; 0 behind the draft
    second: torch.Tensor  # [B, C] float32: how likely verification stops behind it and finds the second choice
    num_given: torch.Tensor  # [B, 1] int64: tokens that are right for sure, at least one
    may_stop: torch.Tensor  # [B, C] bool: verification may end behind this token, and the answer go on
    most_masks: torch.Tensor  # [B, 1] int64: masks that a group may have


def num_known(rows: Rows, mask_token_id: int) -> torch.Tensor:
    """Return how many tokens of its row each draft fills, given ones included, up to its first stop id, [B] int64."""
    is_token = (rows.tokens != mask_token_id) & (rows.columns < rows.new_len[:, None])
    stop = first_stop(rows, rows.tokens, rows.num_emitted)
    return torch.minimum(is_token.long().cumprod(1).sum(1), stop + 1)


def survival(width: int, device: torch.device) -> torch.Tensor:
    """Return how likely each mask of a group finds its token, [width] float32, next to that of its first."""
    return SURVIVAL ** (torch.arange(width, device=device) - 1).clamp(min=0).float()


def plan_groups(rows: Rows, mask_token_id: int, copies: int = 0) -> GroupPlan:
    """Return what of `rows`, B requests in forwards of W tokens, enters the next one.

    `copies` is how many tokens a group has besides its masks.
    """
    draft, width = _draft(_heads(rows), mask_token_id), rows.width
    low, high = rows.threshold.new_zeros(len(rows.tokens)), rows.threshold.new_ones(len(rows.tokens))
    for _ in range(_HALVINGS):
        price = (low + high) / 2
        fits = _num_tokens(_at(draft, price), copies) <= width
        low, high = torch.where(fits, low, price), torch.where(fits, price, high)
    plan, wanted = _at(draft, high), _at(draft, low)
    return _filled(plan, wanted, _stops(draft, plan.num_main, plan.has_second), width, copies)


def _heads(rows: Rows) -> Rows:
    """Return `rows` with as many columns as a chain may have."""
    by_column = rows.tokens, rows.second_ids, rows.draft_confidence
    tokens, second_ids, confidence = (each[:, :LONGEST_CHAIN] for each in by_column)
    return rows.replace(tokens=tokens, second_ids=second_ids, draft_confidence=confidence)


def _draft(rows: Rows, mask_token_id: int) -> _Draft:
    columns, given = rows.columns, rows.num_emitted.long()[:, None]
    known = num_known(rows, mask_token_id)[:, None]
    worth = torch.where(rows.is_broken, AFTER_A_MISS, 1.0)[:, None]
    sure = torch.where(columns < given, 1.0, (rows.draft_confidence * worth).clamp(max=MOST_SURE))
    is_stop = (rows.tokens[:, :, None] == rows.stop_ids[:, None, :]).any(-1) & (columns >= given)
    reach, may_stop = torch.where(columns < known, sure, 0.0).cumprod(1), (columns >= given - 1) & ~is_stop
    missed = reach * (1 - sure.roll(-1, dims=1))
    return _Draft(
        reach=reach,
        second=torch.where(may_stop & (columns + 1 < known), missed * SECOND_IS_RIGHT, 0.0),
        num_given=given,
        may_stop=may_stop,
        most_masks=(rows.block_length.long() - 1)[:, None],
    )


def _at(draft: _Draft, price: torch.Tensor) -> GroupPlan:
    """Return the plan in which all tokens are worth `price` [B] float32."""
    num_main = torch.maximum((draft.reach >= price[:, None]).sum(1), draft.num_given.squeeze(1))
    columns = torch.arange(draft.reach.shape[1], device=num_main.device)
    has_second = (draft.second > 0) & (draft.second >= price[:, None]) & (columns < num_main[:, None])
    stops = _stops(draft, num_main, has_second)
    worth = stops[:, :, None] * survival(stops.shape[1], stops.device)
    num_masks = torch.minimum((worth >= price[:, None, None]).sum(2), draft.most_masks)
    # The first mask stands where verification itself finds the next token.
    return GroupPlan(num_main, torch.where((num_masks > 1) & (stops > 0), num_masks, 0), has_second)


def _stops(draft: _Draft, num_main: torch.Tensor, has_second: torch.Tensor) -> torch.Tensor:
    """Return how likely verification ends behind each of the first `num_main` [B] tokens, [B, C] float32.

    Not counted is where it finds a second choice that stands in the row, `has_second` [B, C].
    """
    columns = torch.arange(draft.reach.shape[1], device=num_main.device)
    following = torch.where(columns < num_main[:, None], draft.reach, 0.0).roll(-1, dims=1)
    following[:, -1] = 0
    stops = draft.reach - following - torch.where(has_second, draft.second, 0.0)
    return torch.where((columns < num_main[:, None]) & draft.may_stop, stops, 0.0)


def _num_tokens(plan: GroupPlan, copies: int) -> torch.Tensor:
    return plan.num_main + (plan.num_masks + plan.has_second + copies * (plan.num_masks > 0)).sum(1)


def _filled(plan: GroupPlan, wanted: GroupPlan, stops: torch.Tensor, width: int, copies: int) -> GroupPlan:
    """Return `plan` with as many of the masks that `wanted` has besides as there is room for, likely stops first."""
    num_masks = plan.num_masks
    more = torch.where(stops > 0, (wanted.num_masks - num_masks).clamp(min=0), 0)
    copied = copies * ((num_masks == 0) & (more > 0))
    is_before = stops[:, None, :] > stops[:, :, None]
    is_before |= (stops[:, None, :] == stops[:, :, None]) & torch.ones_like(is_before[0]).tril(-1)
    taken = ((more + copied)[:, None, :] * is_before).sum(2)
    room = width - _num_tokens(plan, copies)
    added = torch.minimum(room[:, None] - taken - copied, more).clamp(min=0)
    return GroupPlan(plan.num_main, num_masks + added, plan.has_second)
