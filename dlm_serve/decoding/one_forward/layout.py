"""Put the chain and the groups of a plan into the columns of a row.

The chain comes first, so that the KV to keep is that of the first columns; then the groups, in the order of the tokens
that they stand behind. The masks of a group see the chain up to and including that token, and each other. A group that
is led by a copy sees the chain before that token, and the copy, which is noisy like a mask: this is the row of a
separate draft forward.
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
    anchors: torch.Tensor  # [B, W] int32: the column itself in the chain; for a mask that it stands behind; else -1
    prefix: torch.Tensor  # [B, W] int32
    lo: torch.Tensor  # [B, W] int32
    hi: torch.Tensor  # [B, W] int32
    is_main: torch.Tensor  # [B, W] bool, the chain
    is_noisy: torch.Tensor  # [B, W] bool, the groups


def lay_out(rows: Rows, plan: GroupPlan, form: GroupForm, mask_token_id: int) -> Layout:
    """Return the columns of `rows` as `plan` says. Those behind the last group are padding."""
    columns, copies = rows.columns, form.num_copies
    size = plan.num_masks + copies * (plan.num_masks > 0)
    end = plan.num_main[:, None] + size.cumsum(1)
    begin = end - size
    is_member = (columns[..., None] >= begin[:, None]) & (columns[..., None] < end[:, None])
    is_noisy = is_member.any(2)
    anchor = is_member.long().argmax(2)
    first = begin.gather(1, anchor)
    slot = columns - first - copies
    is_copy = is_noisy & (slot < 0)
    is_main = columns < plan.num_main[:, None]

    def pick(main: torch.Tensor | int, noisy: torch.Tensor | int, padding: int = 0) -> torch.Tensor:
        """Return what the chain and the groups have in each column."""
        return torch.where(is_main, main, torch.where(is_noisy, noisy, padding)).expand_as(rows.tokens)

    return Layout(
        tokens=torch.where(is_main, rows.tokens, torch.where(is_copy, rows.tokens.gather(1, anchor), mask_token_id)),
        offsets=pick(columns, anchor + 1 + slot),
        anchors=pick(columns, torch.where(is_copy, -1, anchor), -1).int(),
        prefix=pick(columns + 1, anchor + 1 - copies).int(),
        lo=pick(0, first).int(),
        hi=pick(0, end.gather(1, anchor)).int(),
        is_main=is_main,
        is_noisy=is_noisy,
    )
