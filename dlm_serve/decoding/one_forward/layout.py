"""Put the chain, second choices and groups of a plan into the columns of a row.

The chain comes first, so that the KV to keep is that of the first columns; then what stands behind each of its tokens,
in their order: a second choice, which sees the chain up to and including that token, as the token that it stands in for
does; and a group, whose masks see the same, and each other. A group that is led by a copy sees the chain before that
token, and the copy, which is noisy like a mask: this is the row of a separate draft forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch

from dlm_serve.decoding.one_forward.plan import GroupPlan
from dlm_serve.decoding.rows import Rows


class GroupForm(StrEnum):
    """What a group of masks begins with."""

    MASKS = "masks"
    """Nothing but masks."""
    COPY_LED = "copy_led"
    """A copy of the token that it stands behind."""

    @property
    def num_copies(self) -> int:
        """Return the tokens of a group besides its masks."""
        return int(self is GroupForm.COPY_LED)


@dataclass(frozen=True)
class Layout:
    """The columns of B rows of W tokens. Query i sees key j of its row iff `j < prefix[i] or lo[i] <= j < hi[i]`."""

    tokens: torch.Tensor  # [B, W] int64
    offsets: torch.Tensor  # [B, W] int64, positions behind that of the first column
    anchors: torch.Tensor  # [B, W] int32: see `anchor_of_second`; for padding and copies -1
    prefix: torch.Tensor  # [B, W] int32
    lo: torch.Tensor  # [B, W] int32
    hi: torch.Tensor  # [B, W] int32
    is_main: torch.Tensor  # [B, W] bool, the chain
    is_second: torch.Tensor  # [B, W] bool, second choices
    is_noisy: torch.Tensor  # [B, W] bool, the groups


def anchor_of_second(column: torch.Tensor) -> torch.Tensor:
    """Return the anchor of the second choice behind the token of the chain in `column`.

    That of a token of the chain is its own column, and that of a mask the column of the token that it stands behind.
    """
    return -2 - column


def lay_out(rows: Rows, plan: GroupPlan, form: GroupForm, mask_token_id: int) -> Layout:
    """Return the columns of `rows` as `plan` says. Those behind the last group are padding."""
    columns, copies, has_second = rows.columns, form.num_copies, plan.has_second.long()
    size = has_second + plan.num_masks + copies * (plan.num_masks > 0)
    end = plan.num_main[:, None] + size.cumsum(1)
    begin = end - size
    is_member = (columns[..., None] >= begin[:, None]) & (columns[..., None] < end[:, None])
    anchor = is_member.long().argmax(2)
    first = (begin + has_second).gather(1, anchor)
    is_second = is_member.any(2) & (columns < first)
    is_noisy = is_member.any(2) & ~is_second
    slot = columns - first - copies
    is_copy = is_noisy & (slot < 0)
    is_main = columns < plan.num_main[:, None]
    behind = (anchor + 1).clamp(max=rows.width - 1)

    def pick(
        main: torch.Tensor | int, second: torch.Tensor | int, noisy: torch.Tensor | int, padding: int = 0
    ) -> torch.Tensor:
        """Return what the chain, second choices and groups have in each column."""
        others = torch.where(is_second, second, torch.where(is_noisy, noisy, padding))
        return torch.where(is_main, main, others).expand_as(rows.tokens)

    copied = torch.where(is_copy, rows.tokens.gather(1, anchor), mask_token_id)
    return Layout(
        tokens=pick(rows.tokens, rows.second_ids.gather(1, behind), copied, mask_token_id),
        offsets=pick(columns, anchor + 1, anchor + 1 + slot),
        anchors=pick(columns, anchor_of_second(anchor), torch.where(is_copy, -1, anchor), -1).int(),
        prefix=pick(columns + 1, anchor + 1, anchor + 1 - copies).int(),
        lo=pick(0, columns, first).int(),
        hi=pick(0, columns + 1, end.gather(1, anchor)).int(),
        is_main=is_main,
        is_second=is_second,
        is_noisy=is_noisy,
    )
