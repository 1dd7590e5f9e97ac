"""Define block attention readably."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention


def block_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_table: torch.Tensor,
    slot_rows: torch.Tensor,
    prefix_lens: torch.Tensor,
    causal_len: torch.Tensor,
    new_len: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Return the attention [B, width, H, D] of rows of queries over their committed KV and their own new keys.

    Query i of row b sees all `prefix_lens[b]` committed keys, and its own new key j iff
    `j < new_len[b] and (j <= i or i >= causal_len[b])`. Queries at and past `new_len[b]` are padding:
    finite but meaningless.

    q:           [B, width, H, D]
    k, v:        [B, width, H_kv, D], H a multiple of H_kv
    k_cache, v_cache: [num_slots, H_kv, D]
    slot_table:  [R, max_len] int, the slot of each position of each request
    slot_rows:   [B] int, the row of `slot_table` that belongs to row b
    prefix_lens, causal_len, new_len: [B] int
    """
    out = torch.empty_like(q)
    for row, (slot_row, prefix_len) in enumerate(zip(slot_rows.tolist(), prefix_lens.tolist(), strict=True)):
        slots = slot_table[slot_row, :prefix_len].long()
        keys = torch.cat([k_cache[slots].to(q.dtype), k[row]])
        values = torch.cat([v_cache[slots].to(q.dtype), v[row]])
        mask = _visible(q.shape[1], causal_len[row], new_len[row])
        mask = torch.cat([mask.new_ones(q.shape[1], prefix_len), mask], dim=1)
        queries, keys, values = (t.movedim(0, 1)[None] for t in (q[row], keys, values))
        attended = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale, enable_gqa=True)
        out[row] = attended[0].movedim(0, 1)
    return out


def _visible(width: int, causal_len: torch.Tensor, new_len: torch.Tensor) -> torch.Tensor:
    """Return which new key j each query i sees, [width, width] bool."""
    i = torch.arange(width, device=new_len.device)[:, None]
    j = torch.arange(width, device=new_len.device)[None, :]
    return (j < new_len) & ((j <= i) | (i >= causal_len))
