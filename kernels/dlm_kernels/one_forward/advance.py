"""Advance the rows that speculate in one forward, as `decoding.one_forward.advance` does, in one launch.

Rows in other phases stay as they are. Phases are numbered as in `decoding.modes.Phase`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from dlm_kernels.one_forward.plan import first_true, is_stop_id

SPECULATE = tl.constexpr(5)
CHOSEN = tl.constexpr(2.0)


@triton.jit
def _advance_chain_kernel(
    indices,
    tokens,
    new_len,
    num_emitted,
    phase,
    step,
    mean_entropy,
    block_length,
    second_ids,
    draft_confidence,
    is_broken,
    stop_ids,
    anchors,
    ids,
    confidence,
    predicted_second,
    out_tokens,
    out_lens,
    stride_tokens,
    mask_token_id,
    W: tl.constexpr,
    BW: tl.constexpr,
    C: tl.constexpr,
    BC: tl.constexpr,
    OUT: tl.constexpr,
    NUM_STOPS: tl.constexpr,
):
    """Advance the row at indices[i_b], of C columns, by a forward over W; it emits up to OUT tokens."""
    i_b = tl.program_id(0)
    i_r = tl.load(indices + i_b)
    if tl.load(phase + i_r) == SPECULATE:
        o_w, o_c = tl.arange(0, BW), tl.arange(0, BC)
        p_tokens, p_ids = tokens + i_r * stride_tokens, ids + i_b * W
        p_row, p_conf = draft_confidence + i_r * stride_tokens, confidence + i_b * W
        p_seconds, p_others = second_ids + i_r * stride_tokens, predicted_second + i_b * W
        given, length = tl.load(num_emitted + i_r), tl.load(new_len + i_r)
        b_anchor = tl.load(anchors + i_b * W + o_w, mask=o_w < W, other=-1)
        b_tokens = tl.load(p_tokens + o_c, mask=o_c < C, other=mask_token_id)

        # What is verified: the chain up to the first token that the model would not have chosen.
        b_main = tl.load(anchors + i_b * W + o_c, mask=o_c < W, other=-1) == o_c
        b_before = tl.load(p_ids + o_c - 1, mask=(o_c > 0) & (o_c < W), other=-1)
        right = first_true((o_c >= given) & ~(b_main & (b_tokens == b_before)), o_c, BC)
        pending = tl.load(p_ids + right - 1)
        b_emitted = tl.load(p_ids + o_c + given - 1, mask=o_c + given - 1 < W, other=0)
        tl.store(out_tokens + i_b * OUT + o_c, b_emitted, mask=o_c < OUT)
        tl.store(out_lens + i_b, right - given + 1)

        # The second choice at the stop, and what the forward says behind it.
        at_second = tl.max(tl.where(b_anchor == -1 - right, o_w, -1), 0)
        second = tl.load(p_seconds + right, mask=right < C, other=-1)
        is_found = (at_second >= 0) & (second == pending)
        chosen = tl.load(p_ids + at_second, mask=is_found, other=-1)

        # The group at the stop, or the nearest before it.
        b_is_mask = (b_anchor >= 0) & (b_anchor < o_w)
        anchor = tl.max(tl.where(b_is_mask & (b_anchor < right), b_anchor, -1), 0)
        b_member = b_is_mask & (b_anchor == anchor)
        first = tl.min(tl.where(b_member, o_w, W), 0)
        decided = right - anchor
        drafted = tl.maximum(tl.sum(b_member.to(tl.int32), 0) - decided, 0)
        b_found = tl.load(p_ids + o_w, mask=b_member, other=0)
        b_verified = tl.load(p_ids + o_w - first + anchor, mask=b_member, other=0)
        missed = b_member & (o_w - first < decided) & (b_found != b_verified)
        group_broken = tl.max(missed.to(tl.int32), 0) > 0

        # What is left of the draft that was verified, where no group goes on.
        b_stop = is_stop_id(b_tokens, stop_ids + i_r * NUM_STOPS, NUM_STOPS) & (o_c >= given)
        b_is_token = (b_tokens != mask_token_id) & (o_c < length)
        known = tl.minimum(first_true(~b_is_token, o_c, BC), first_true(b_stop & b_is_token, o_c, BC) + 1)
        known = tl.minimum(known, W)
        follows = tl.load(p_tokens + right, mask=right < C, other=-1)
        left_broken = (tl.load(is_broken + i_r).to(tl.int32) != 0) | (follows != pending)

        takes_group = drafted > 0
        o_d = o_c - 1  # the draft stands behind the pending token
        limit = tl.load(block_length + i_r) - 1
        num = tl.minimum(tl.where(takes_group, drafted, tl.maximum(known - right - 1, 0)), tl.minimum(limit, W - 1))
        b_in = (o_d >= 0) & (o_d < num)
        o_fresh, o_left = first + decided + o_d, right + 1 + o_d
        b_fresh = tl.load(p_ids + o_fresh, mask=b_in & takes_group, other=mask_token_id)
        b_left = tl.load(p_tokens + o_left, mask=b_in & ~takes_group, other=mask_token_id)
        b_draft = tl.where(takes_group, b_fresh, b_left)
        b_is_first = (o_d == 0) & is_found & (limit > 0)
        contradicted = tl.max((b_is_first & (b_draft != mask_token_id) & (b_draft != chosen)).to(tl.int32), 0) > 0
        b_new = tl.where(o_c == 0, pending, tl.where(b_is_first, chosen, b_draft))
        b_sure = tl.load(p_conf + o_fresh, mask=b_in & takes_group, other=0.0)
        b_sure_left = tl.load(p_row + o_left, mask=b_in & ~takes_group, other=0.0)
        b_sure = tl.where(b_is_first, CHOSEN, tl.where(takes_group, b_sure, b_sure_left))
        b_other = tl.load(p_others + o_fresh, mask=b_in & takes_group, other=0)
        b_other_left = tl.load(p_seconds + o_left, mask=b_in & ~takes_group, other=0)
        tl.debug_barrier()  # the row is read as a whole before it is written
        tl.store(p_tokens + o_c, b_new, mask=o_c < OUT)
        tl.store(p_row + o_c, b_sure, mask=o_c < OUT)
        tl.store(p_seconds + o_c, tl.where(takes_group, b_other, b_other_left), mask=o_c < OUT)
        tl.store(is_broken + i_r, tl.where(takes_group, group_broken, left_broken) | contradicted)
        tl.store(new_len + i_r, tl.maximum(num, tl.where(is_found & (limit > 0), 1, 0)) + 1)
        tl.store(num_emitted + i_r, 1)
        tl.store(step + i_r, 0)
        tl.store(mean_entropy + i_r, float("nan"))


def advance_(
    rows: Any,
    indices: torch.Tensor,
    anchors: torch.Tensor,
    ids: torch.Tensor,
    confidence: torch.Tensor,
    second_ids: torch.Tensor,
    mask_token_id: int,
    emitted: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Advance the `rows` (a `decoding.Rows`) at `indices` [B] int64 that speculate, by a prediction [B, W].

    Writes what they emit into `emitted`, tokens [B, min(W, C)] int64 and lengths [B] int32; `rows` have C columns.
    """
    batch, width = ids.shape
    longest = rows.tokens.shape[1]
    _advance_chain_kernel[(batch,)](
        indices,
        rows.tokens,
        rows.new_len,
        rows.num_emitted,
        rows.phase,
        rows.step,
        rows.mean_entropy,
        rows.block_length,
        rows.second_ids,
        rows.draft_confidence,
        rows.is_broken,
        rows.stop_ids,
        anchors,
        ids,
        confidence,
        second_ids,
        *emitted,
        rows.tokens.stride(0),
        mask_token_id,
        W=width,
        BW=triton.next_power_of_2(width),
        C=longest,
        BC=triton.next_power_of_2(longest),
        OUT=min(width, longest),
        NUM_STOPS=rows.stop_ids.shape[1],
        num_warps=1,
    )
