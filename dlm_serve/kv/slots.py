"""Where the KV of a forward goes.

Slots from the start of a request's row to the end of its reserve are its own: shared with nobody. A row
writes there only KV that is committed. Everything else goes to slot 0, which no request owns.
"""

from __future__ import annotations

import torch

NO_SLOT = 0


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
