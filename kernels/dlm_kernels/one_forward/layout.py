"""How rows of causal commits enter a forward, whatever their phase: `CausalCommit.attention_spec` in two launches.

Phases are numbered as in `decoding.modes.Phase`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from dlm_kernels.one_forward.plan import SPECULATE, plan

DENOISE = tl.constexpr(1)
DRAFT = tl.constexpr(2)


class RowLayout(NamedTuple):
    """The columns of B rows of W tokens, [B, W] each."""

    tokens: torch.Tensor  # int64
    positions: torch.Tensor  # int64
    anchors: torch.Tensor  # int32
    prefix: torch.Tensor  # int32
    lo: torch.Tensor  # int32
    hi: torch.Tensor  # int32
    shift: torch.Tensor  # int64
    kept: torch.Tensor  # bool
    lora_on: torch.Tensor  # bool


@triton.jit
def _layout_kernel(
    row_tokens,
    row_second_ids,
    new_len,
    phase,
    starts,
    num_main_in,
    has_second_in,
    ends,
    tokens,
    positions,
    anchors,
    prefix,
    lo,
    hi,
    shift,
    kept,
    lora_on,
    width,
    mask_token_id,
    BW: tl.constexpr,
    C: tl.constexpr,
    COPIES: tl.constexpr,
):
    """Lay out the `width` columns of the row i_b."""
    i_b = tl.program_id(0)
    o_w = tl.arange(0, BW)
    mask_w = o_w < width
    p_out = i_b * width + o_w
    b_tokens = tl.load(row_tokens + p_out, mask=mask_w, other=0)
    now, length, start = tl.load(phase + i_b), tl.load(new_len + i_b), tl.load(starts + i_b)
    if now == SPECULATE:
        num_main = tl.load(num_main_in + i_b)
        b_ends = tl.load(ends + i_b * C + tl.arange(0, C))
        b_anchor = tl.sum((b_ends[None, :] <= o_w[:, None]).to(tl.int32), 1)
        is_main = o_w < num_main
        is_behind = (o_w >= num_main) & (b_anchor < C)
        b_end = tl.load(ends + i_b * C + b_anchor, mask=is_behind, other=0)
        b_first = tl.load(ends + i_b * C + b_anchor - 1, mask=is_behind & (b_anchor > 0), other=0)
        b_first = tl.where(b_anchor > 0, b_first, num_main)
        b_first += tl.load(has_second_in + i_b * C + b_anchor, mask=is_behind, other=0)
        is_second, is_noisy = is_behind & (o_w < b_first), is_behind & (o_w >= b_first)
        b_slot = o_w - b_first - COPIES
        is_copy = is_noisy & (b_slot < 0)
        b_copy = tl.load(row_tokens + i_b * width + b_anchor, mask=is_copy, other=mask_token_id)
        b_second = tl.load(row_second_ids + i_b * width + b_anchor + 1, mask=is_second, other=0)
        b_tokens = tl.where(is_main, b_tokens, tl.where(is_second, b_second, b_copy))
        b_offset = tl.where(is_second, b_anchor + 1, tl.where(is_noisy, b_anchor + 1 + b_slot, 0))
        b_offset = tl.where(is_main, o_w, b_offset)
        b_anchors = tl.where(is_second, -2 - b_anchor, tl.where(is_noisy & (b_slot >= 0), b_anchor, -1))
        b_anchors = tl.where(is_main, o_w, b_anchors)
        b_prefix = tl.where(is_second, b_anchor + 1, tl.where(is_noisy, b_anchor + 1 - COPIES, 0))
        b_prefix = tl.where(is_main, o_w + 1, b_prefix)
        b_lo = tl.where(is_second, o_w, tl.where(is_noisy, b_first, 0))
        b_hi = tl.where(is_second, o_w + 1, tl.where(is_noisy, b_end, 0))
        b_shift, b_kept, b_lora = (is_main | is_second).to(tl.int64), is_main, is_noisy
    else:
        denoising = (now == DENOISE) | (now == DRAFT)
        b_offset, b_anchors = o_w, o_w
        b_prefix = tl.where(denoising, length, tl.minimum(o_w + 1, length))
        b_lo, b_hi = tl.zeros([BW], tl.int32), tl.zeros([BW], tl.int32)
        b_shift = ((o_w >= 0) & (not denoising)).to(tl.int64)
        b_kept = (o_w < length) & (not denoising)
        b_lora = (o_w >= 0) & (now == DRAFT)
    tl.store(tokens + p_out, b_tokens, mask=mask_w)
    tl.store(positions + p_out, start + b_offset, mask=mask_w)
    tl.store(anchors + p_out, b_anchors, mask=mask_w)
    tl.store(prefix + p_out, b_prefix, mask=mask_w)
    tl.store(lo + p_out, b_lo, mask=mask_w)
    tl.store(hi + p_out, b_hi, mask=mask_w)
    tl.store(shift + p_out, b_shift, mask=mask_w)
    tl.store(kept + p_out, b_kept, mask=mask_w)
    tl.store(lora_on + p_out, b_lora, mask=mask_w)


def lay_out(rows: Any, starts: torch.Tensor, longest: int, copies: int, mask_token_id: int) -> RowLayout:
    """Return the columns of `rows` (a `decoding.Rows`), which start at the positions `starts` [B] int64.

    Their chains have at most `longest` tokens, given ones included; `copies` is what a group has besides its masks.
    """
    batch, width = rows.tokens.shape
    dtypes = (torch.int64, torch.int64, *[torch.int32] * 4, torch.int64, torch.bool, torch.bool)
    out = RowLayout(*(torch.empty(batch, width, dtype=dtype, device=rows.tokens.device) for dtype in dtypes))
    planned = plan(rows, longest, copies, mask_token_id)
    _layout_kernel[(batch,)](
        rows.tokens,
        rows.second_ids,
        rows.new_len,
        rows.phase,
        starts,
        *planned,
        *out,
        width,
        mask_token_id,
        BW=triton.next_power_of_2(width),
        C=planned.ends.shape[1],
        COPIES=copies,
        num_warps=1,
    )
    return out
