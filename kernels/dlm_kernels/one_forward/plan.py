"""Plan the rows that speculate in one forward, as `decoding.one_forward.plan` does, which explains each line.

One program a row, in registers. Phases are numbered as in `decoding.modes.Phase`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

SPECULATE = tl.constexpr(5)
HALVINGS = tl.constexpr(16)
LOG2_SURVIVAL = tl.constexpr(-0.07400058144377693)
AFTER_A_MISS = tl.constexpr(0.5)
MOST_SURE = tl.constexpr(0.999)
SECOND_IS_RIGHT = tl.constexpr(0.4)


@triton.jit
def first_true(b_is, o_c, C: tl.constexpr):
    """Return the first column in which `b_is` [C] holds, or C."""
    return tl.min(tl.where(b_is, o_c, C), 0)


@triton.jit
def is_stop_id(b_tokens, p_stops, NUM_STOPS: tl.constexpr):
    """Return which of the tokens [C] are stop ids."""
    b_is = b_tokens == tl.load(p_stops)
    for i in tl.static_range(1, NUM_STOPS):
        b_is |= b_tokens == tl.load(p_stops + i)
    return b_is


@triton.jit
def _stops_at(b_reach, b_following, b_second, b_may_stop, o_c, num_main, b_has_second):
    """Return how likely verification ends behind each of the first `num_main` tokens [C]."""
    b_next = tl.where(o_c + 1 < num_main, b_following, 0.0)
    b_stops = b_reach - b_next - tl.where(b_has_second, b_second, 0.0)
    return tl.where((o_c < num_main) & b_may_stop, b_stops, 0.0)


@triton.jit
def _at(b_reach, b_following, b_second, b_may_stop, o_c, price, given, most, C: tl.constexpr):
    """Return the chain, the second choices, stops and masks [C] behind it in which all tokens are worth `price`."""
    num_main = tl.maximum(tl.sum((b_reach >= price).to(tl.int32), 0), given)
    b_has_second = (b_second > 0) & (b_second >= price) & (o_c < num_main)
    b_stops = _stops_at(b_reach, b_following, b_second, b_may_stop, o_c, num_main, b_has_second)
    o_k = tl.arange(0, C)
    b_survival = tl.math.exp2(tl.maximum(o_k - 1, 0).to(tl.float32) * LOG2_SURVIVAL)
    b_worth = b_stops[:, None] * b_survival[None, :]
    b_masks = tl.minimum(tl.sum((b_worth >= price).to(tl.int32), 1), most)
    return num_main, b_has_second, b_stops, tl.where((b_masks > 1) & (b_stops > 0), b_masks, 0)


@triton.jit
def _size(b_has_second, b_masks, COPIES: tl.constexpr):
    """Return the tokens behind each of the chain [C]."""
    return b_has_second.to(tl.int32) + b_masks + (b_masks > 0).to(tl.int32) * COPIES


@triton.jit
def _plan_kernel(
    tokens,
    new_len,
    num_emitted,
    phase,
    block_length,
    draft_confidence,
    is_broken,
    stop_ids,
    num_main_out,
    has_second_out,
    ends,
    width,
    mask_token_id,
    C: tl.constexpr,
    COPIES: tl.constexpr,
    NUM_STOPS: tl.constexpr,
):
    """Plan the row i_b for `width` columns; its draft stands in the first C."""
    i_b = tl.program_id(0)
    if tl.load(phase + i_b) != SPECULATE:
        return
    o_c = tl.arange(0, C)
    given, length, most = tl.load(num_emitted + i_b), tl.load(new_len + i_b), tl.load(block_length + i_b) - 1
    p_sure = draft_confidence + i_b * width + o_c
    b_tokens = tl.load(tokens + i_b * width + o_c, mask=o_c < width, other=mask_token_id)
    b_is_token = (b_tokens != mask_token_id) & (o_c < length)
    b_stop = is_stop_id(b_tokens, stop_ids + i_b * NUM_STOPS, NUM_STOPS) & (o_c >= given)
    known = tl.minimum(first_true(~b_is_token, o_c, C), first_true(b_stop & b_is_token, o_c, C) + 1)
    worth = tl.where(tl.load(is_broken + i_b), AFTER_A_MISS, 1.0)
    b_sure = tl.minimum(tl.load(p_sure, mask=o_c < width, other=0.0) * worth, MOST_SURE)
    b_next = tl.minimum(tl.load(p_sure + 1, mask=o_c + 1 < width, other=0.0) * worth, MOST_SURE)
    b_reach = tl.cumprod(tl.where(o_c < known, tl.where(o_c < given, 1.0, b_sure), 0.0), 0)
    b_next = tl.where(o_c + 1 < given, 1.0, b_next)
    b_following = tl.where(o_c + 1 < known, b_reach * b_next, 0.0)
    b_may_stop = (o_c >= given - 1) & ~b_stop
    b_missed = b_reach * (1 - b_next)
    b_second = tl.where(b_may_stop & (o_c + 1 < known), b_missed * SECOND_IS_RIGHT, 0.0)

    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        price = (low + high) / 2
        num_main, b_has, _, b_masks = _at(b_reach, b_following, b_second, b_may_stop, o_c, price, given, most, C)
        fits = num_main + tl.sum(_size(b_has, b_masks, COPIES), 0) <= width
        low, high = tl.where(fits, low, price), tl.where(fits, price, high)
    num_main, b_has, b_stops, b_masks = _at(b_reach, b_following, b_second, b_may_stop, o_c, high, given, most, C)
    _, _, _, b_wanted = _at(b_reach, b_following, b_second, b_may_stop, o_c, low, given, most, C)

    # Fill what is left, likely stops first.
    b_more = tl.where(b_stops > 0, tl.maximum(b_wanted - b_masks, 0), 0)
    b_copied = ((b_masks == 0) & (b_more > 0)).to(tl.int32) * COPIES
    b_mine = tl.sum(tl.where(o_c[:, None] == o_c[None, :], b_stops[None, :], 0.0), 1)  # along the other axis
    b_is_before = b_stops[None, :] > b_mine[:, None]
    b_is_before |= (b_stops[None, :] == b_mine[:, None]) & (o_c[None, :] < o_c[:, None])
    b_taken = tl.sum(tl.where(b_is_before, (b_more + b_copied)[None, :], 0), 1)
    room = width - num_main - tl.sum(_size(b_has, b_masks, COPIES), 0)
    b_masks += tl.maximum(tl.minimum(room - b_taken - b_copied, b_more), 0)
    tl.store(num_main_out + i_b, num_main)
    tl.store(has_second_out + i_b * C + o_c, b_has.to(tl.int32))
    tl.store(ends + i_b * C + o_c, num_main + tl.cumsum(_size(b_has, b_masks, COPIES), 0))


class Plan(NamedTuple):
    """What enters a forward of B rows, where they speculate."""

    num_main: torch.Tensor  # [B] int32, tokens of the chain
    has_second: torch.Tensor  # [B, C] int32, whether a second choice stands behind each of the first C tokens
    ends: torch.Tensor  # [B, C] int32, the columns in which what stands behind each of them ends


def plan(rows: Any, longest: int, copies: int, mask_token_id: int) -> Plan:
    """Plan `rows` (a `decoding.Rows`) of W tokens whose chains have at most `longest`.

    `copies` is what a group has besides its masks. Rows in other phases get no plan.
    """
    batch, width = rows.tokens.shape
    longest = triton.next_power_of_2(longest)
    empty = rows.new_len.new_empty
    found = Plan(empty(batch), empty(batch, longest), empty(batch, longest))
    _plan_kernel[(batch,)](
        rows.tokens,
        rows.new_len,
        rows.num_emitted,
        rows.phase,
        rows.block_length,
        rows.draft_confidence,
        rows.is_broken,
        rows.stop_ids,
        *found,
        width,
        mask_token_id,
        C=longest,
        COPIES=copies,
        NUM_STOPS=rows.stop_ids.shape[1],
        num_warps=1,
    )
    return found
