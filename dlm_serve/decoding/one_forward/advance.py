"""Take what a forward over chain and groups says: the tokens that it verifies, and the draft behind them."""

from __future__ import annotations

from dataclasses import dataclass
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
    stop it is what is left of the draft that was verified. If verification finds the second choice, the draft begins
    with what the forward says behind that.
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

    is_missed = rows.tokens.gather(1, num_right.clamp(max=rows.width - 1)) != pending
    found = _Draft(
        ids=draft(ids, rows.tokens, mask_token_id),
        second_ids=draft(prediction.second_ids, rows.second_ids, 0),
        confidence=draft(prediction.confidence, rows.draft_confidence, 0),
        is_broken=torch.where(takes_group, group.is_broken, rows.is_broken[:, None] | is_missed),
    )
    second = anchors == anchor_of_second(num_right - 1)
    tried = rows.second_ids.gather(1, num_right.clamp(max=rows.width - 1))
    is_found = second.any(1, keepdim=True) & (tried == pending)
    found = found.beginning_with(ids.gather(1, second.long().argmax(1, keepdim=True)), is_found, mask_token_id)
    output = StepOutput(emitted, (num_right - given + 1).squeeze(1).to(torch.int32))
    return found.put_behind(pending, rows, mask_token_id), output


@dataclass(frozen=True)
class _Draft:
    """What stands behind the pending token of each row."""

    ids: torch.Tensor  # [B, W] int64, masks behind the draft
    second_ids: torch.Tensor  # [B, W] int64
    confidence: torch.Tensor  # [B, W] float32
    is_broken: torch.Tensor  # [B, 1] bool, whether it stands behind other tokens than it was made for

    def beginning_with(self, chosen: torch.Tensor, condition: torch.Tensor, mask_token_id: int) -> _Draft:
        """Return it with the first token `chosen` [B, 1] where `condition` [B, 1] holds: that is right for sure."""
        is_first = condition & (torch.arange(self.ids.shape[1], device=chosen.device) == 0)
        is_other = is_first & (self.ids != mask_token_id) & (self.ids != chosen)
        return _Draft(
            ids=torch.where(is_first, chosen, self.ids),
            second_ids=self.second_ids,
            confidence=torch.where(is_first, CHOSEN, self.confidence),
            is_broken=self.is_broken | is_other.any(1, keepdim=True),
        )

    def put_behind(self, pending: torch.Tensor, rows: Rows, mask_token_id: int) -> Rows:
        """Return `rows` with the token `pending` [B, 1] and as much of the draft as a block holds."""
        is_behind = rows.columns < rows.block_length[:, None] - 1
        tokens = torch.cat([pending, torch.where(is_behind, self.ids, mask_token_id)[:, :-1]], dim=1)
        num_drafted = (tokens != mask_token_id).long().cumprod(1).sum(1)
        return rows.with_block(tokens, torch.ones_like(rows.num_emitted)).replace(
            new_len=num_drafted.to(torch.int32),
            second_ids=pad(self.second_ids[:, :-1], (1, 0)),
            draft_confidence=pad(self.confidence[:, :-1], (1, 0)),
            is_broken=self.is_broken.squeeze(1),
        )


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
