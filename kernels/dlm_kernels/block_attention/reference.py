"""Define block attention readably."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention


class Visible(NamedTuple):
    """What queries see of the new keys of their row: query i of row b sees key j iff

    `j < prefix[b, i] or lo[b, i] <= j < hi[b, i]`.
    """

    prefix: torch.Tensor  # [B, width] int32
    lo: torch.Tensor  # [B, width] int32
    hi: torch.Tensor  # [B, width] int32

    @classmethod
    def of(cls, causal_len: torch.Tensor, new_len: torch.Tensor, width: int) -> Visible:
        """Return what rows see whose first `causal_len` [B] queries are causal and whose others see the whole row.

        A whole row are `new_len` [B] keys; what is behind them is padding.
        """
        i = torch.arange(width, device=new_len.device, dtype=torch.int32)
        causal_len, new_len = causal_len[:, None].int(), new_len[:, None].int()
        prefix = torch.where(i < causal_len, (i + 1).minimum(new_len), new_len)
        nothing = torch.zeros_like(prefix)
        return cls(prefix, nothing, nothing)

    def mask(self) -> torch.Tensor:
        """Return which new key each query sees, [B, width, width] bool."""
        j = torch.arange(self.prefix.shape[1], device=self.prefix.device)
        prefix, lo, hi = (tensor[..., None] for tensor in self)
        return (j < prefix) | ((lo <= j) & (j < hi))


def block_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_table: torch.Tensor,
    slot_rows: torch.Tensor,
    prefix_lens: torch.Tensor,
    visible: Visible,
    scale: float,
) -> torch.Tensor:
    """Return the attention [B, width, H, D] of rows of queries over their committed KV and their own new keys.

    A query of row b sees all `prefix_lens[b]` committed keys, and of the row's new ones those that are `visible`. One
    that sees nothing at all is padding: finite but meaningless.

    q:           [B, width, H, D]
    k, v:        [B, width, H_kv, D], H a multiple of H_kv
    k_cache, v_cache: [num_slots, H_kv, D]
    slot_table:  [R, max_len] int, the slot of each position of each request
    slot_rows:   [B] int, the row of `slot_table` that belongs to row b
    prefix_lens: [B] int
    """
    out, masks = torch.empty_like(q), visible.mask()
    for row, (slot_row, prefix_len) in enumerate(zip(slot_rows.tolist(), prefix_lens.tolist(), strict=True)):
        slots = slot_table[slot_row, :prefix_len].long()
        keys = torch.cat([k_cache[slots].to(q.dtype), k[row]])
        values = torch.cat([v_cache[slots].to(q.dtype), v[row]])
        mask = torch.cat([masks.new_ones(q.shape[1], prefix_len), masks[row]], dim=1)
        queries, keys, values = (t.movedim(0, 1)[None] for t in (q[row], keys, values))
        attended = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale, enable_gqa=True)
        out[row] = attended[0].movedim(0, 1)
    return out
