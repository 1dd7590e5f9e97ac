"""Which KV slots a forward writes and reads.

The slots from the start of a request's row to the end of its reserve belong to it alone. A row writes there only
KV that may become final: what was rejected of a draft is overwritten by the next step. Everything else goes to slot 0,
which no request owns.
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
    """Return the slots of `prefix_lens` [B] committed tokens: of all, or of the last `window` of them.

    slot_table [R, max_len] int, slot_rows [B].
    """
    if window is None:
        return ReadSlots(slot_table, slot_rows, prefix_lens)
    columns = torch.arange(window, device=prefix_lens.device)
    positions = (prefix_lens - window).clamp(min=0).long()[:, None] + columns
    last = slot_table[slot_rows.long()[:, None], positions.clamp(max=slot_table.shape[1] - 1)]
    return ReadSlots(last, torch.arange(len(prefix_lens), device=prefix_lens.device), prefix_lens.clamp(max=window))


def write_slots(
    slot_table: torch.Tensor, slot_rows: torch.Tensor, positions: torch.Tensor, kept: torch.Tensor
) -> torch.Tensor:
    """Return the slot [B, W] int64 that each new token's KV is written to.

    slot_table [R, max_len] int, slot_rows [B], positions [B, W] int64, kept [B, W] bool.
    """
    readable = torch.where(kept, positions, 0)
    slots = slot_table[slot_rows.long()[:, None], readable].long()
    return torch.where(kept, slots, NO_SLOT)
