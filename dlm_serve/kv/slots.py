"""Where the KV of a forward goes, and where the KV lies that it reads.

Slots from the start of a request's row to the end of its reserve are its own: shared with nobody. A row
writes there only KV that is committed. Everything else goes to slot 0, which no request owns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

NO_SLOT = 0


@dataclass(frozen=True)
class ReadSlots:
    """The slots of the committed KV that B rows read: the first `lens[b]` of row `rows[b]` of the table."""

    table: torch.Tensor  # [R, max_len] int
    rows: torch.Tensor  # [B] int64
    lens: torch.Tensor  # [B] int64


def read_slots(
    slot_table: torch.Tensor, slot_rows: torch.Tensor, prefix_lens: torch.Tensor, window: int | None
) -> ReadSlots:
    """The slots behind `prefix_lens` [B] committed tokens: all of them, or with a `window` those of the last so many.

    slot_table [R, max_len] int, slot_rows [B].
    """
    if window is None:
        return ReadSlots(slot_table, slot_rows, prefix_lens)
    columns = torch.arange(window, device=prefix_lens.device)
    positions = (prefix_lens - window).clamp(min=0).long()[:, None] + columns
    last = slot_table[slot_rows.long()[:, None], positions.clamp(max=slot_table.shape[1] - 1)]
    return ReadSlots(last, torch.arange(len(prefix_lens), device=prefix_lens.device), prefix_lens.clamp(max=window))


def write_slots(
    slot_table: torch.Tensor,
    slot_rows: torch.Tensor,
    starts: torch.Tensor,
    kept_len: torch.Tensor,
    width: int,
) -> torch.Tensor:
    """The slot [B, width] int64 that each new token's KV is written to.

    slot_table [R, max_len] int, slot_rows [B], starts [B], the rows' first positions, kept_len [B] int.
    """
    columns = torch.arange(width, device=starts.device)[None, :]
    kept = columns < kept_len[:, None]
    positions = torch.where(kept, starts[:, None].long() + columns, 0)
    slots = slot_table[slot_rows.long()[:, None], positions].long()
    return torch.where(kept, slots, NO_SLOT)
