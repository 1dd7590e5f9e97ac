"""Take what a forward over chain and groups says: the tokens that it verifies, and the draft behind them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import pad

from dlm_serve.decoding.one_forward.layout import anchor_of_second
from dlm_serve.decoding.one_forward.plan import CHOSEN, num_known
from dlm_serve.decoding.rows import Rows
from dlm_serve.decoding.step_output import StepOutput
from dlm_serve.decoding.token_choice import Prediction


def advance(rows: Rows, anchors: torch.Tensor, prediction: Prediction, mask_token_id: int) -> tuple[Rows, StepOutput]:
    """Return `rows` after a forward over columns with these `anchors` [B, W] int32, and what they emit.

    The next draft is that of the group at the stop, else of the nearest before it. Where that has nothing behind the
    stop it is what is left of the draft that was verified. If verification finds the second choice, the forward says
    what follows that, too: for sure the first token of the next draft.
    """
    ids, columns, given = prediction.ids, rows.columns, rows.num_emitted.long()[:, None]
    is_main = anchors == columns
    is_right = (columns < given) | (is_main & (rows.tokens == ids.roll(1, dims=1)))
    num_right = is_right.long().cumprod(1).sum(1, keepdim=True)
    emitted = ids.gather(1, (columns + given - 1).clamp(max=rows.width - 1))
    pending = ids.gather(1, num_right - 1)

    group = _behind(anchors, ids, num_right)
    is_left = columns + num_right + 1 < num_known(rows, mask_token_id)[:, None]
    left = (num_right + 1 + columns).clamp(max=rows.width - 1)
    takes_group = group.num_drafted > 0

    def draft(of_group: torch.Tensor, of_rows: torch.Tensor, nothing: int) -> torch.Tensor:
        """Return the next draft's values [B, W] from the columns of the forward or, where it has none, the row's."""
        fresh = torch.where(columns < group.num_drafted, of_group.gather(1, group.columns), nothing)
        return torch.where(takes_group, fresh, torch.where(is_left, of_rows.gather(1, left), nothing))

    is_found, follows = _behind_second(rows, anchors, ids, num_right, pending)
    is_missed = rows.tokens.gather(1, num_right.clamp(max=rows.width - 1)) != pending
    tokens, confidence = draft(ids, rows.tokens, mask_token_id), draft(prediction.confidence, rows.draft_confidence, 0)
    is_broken = torch.where(takes_group, group.is_broken, rows.is_broken[:, None] | is_missed)
    is_first = is_found & (columns == 0)
    is_broken |= (is_first & (tokens != mask_token_id) & (tokens != follows)).any(1, keepdim=True)
    tokens, confidence = torch.where(is_first, follows, tokens), torch.where(is_first, CHOSEN, confidence)
    behind = columns < rows.block_length[:, None] - 1
    tokens = torch.cat([pending, torch.where(behind, tokens, mask_token_id)[:, :-1]], dim=1)
    num_drafted = (tokens != mask_token_id).long().cumprod(1).sum(1)
    after = rows.with_block(tokens, torch.ones_like(rows.num_emitted)).replace(
        new_len=num_drafted.to(torch.int32),
        second_ids=pad(draft(prediction.second_ids, rows.second_ids, 0)[:, :-1], (1, 0)),
        draft_confidence=pad(confidence[:, :-1], (1, 0)),
        is_broken=is_broken.squeeze(1),
    )
    return after, StepOutput(emitted, (num_right - given + 1).squeeze(1).to(torch.int32))


def _behind_second(
    rows: Rows, anchors: torch.Tensor, ids: torch.Tensor, num_right: torch.Tensor, pending: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return whether the second choice at the stop is the `pending` token, and what follows it, [B, 1] each."""
    is_there = anchors == anchor_of_second(num_right - 1)
    second = rows.second_ids.gather(1, num_right.clamp(max=rows.width - 1))
    follows = ids.gather(1, is_there.long().argmax(1, keepdim=True))
    return is_there.any(1, keepdim=True) & (second == pending), follows


class _Group(NamedTuple):
    """The group whose draft goes on behind the stop, in each row."""

    columns: torch.Tensor  # [B, W] int64, those of its masks behind the next pending token, then any others
    num_drafted: torch.Tensor  # [B, 1] int64, how many there are
    is_broken: torch.Tensor  # [B, 1] bool, whether it found other tokens than were verified


def _behind(anchors: torch.Tensor, ids: torch.Tensor, num_right: torch.Tensor) -> _Group:
    """Return the group that stands at the last of `num_right` [B, 1] tokens of the chain, or the nearest before it."""
    width = anchors.shape[1]
    columns = torch.arange(width, device=anchors.device)[None]
    is_mask = (anchors >= 0) & (anchors < columns)
    anchor = torch.where(is_mask & (anchors < num_right), anchors, -1).amax(1, keepdim=True).long()
    is_member = is_mask & (anchors == anchor)
    first = torch.where(is_member, columns, width).amin(1, keepdim=True)
    num_masks, num_decided = is_member.sum(1, keepdim=True), num_right - anchor
    # A mask stands for the token behind the one that verification found it by.
    verified = ids.gather(1, (columns - first + anchor).clamp(0, width - 1))
    is_broken = (is_member & (columns - first < num_decided) & (ids != verified)).any(1, keepdim=True)
    drafted = (first + num_decided + columns).clamp(max=width - 1)
    return _Group(drafted, (num_masks - num_decided).clamp(min=0), is_broken)
