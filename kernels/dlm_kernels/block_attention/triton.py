"""Block attention in Triton: one tile holds all query heads of a KV head for part of a row."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _accumulate(b_q, b_k, b_v, visible, m_row, l_row, b_o, scale, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """Fold one tile of keys [D, N] and values [N, D] into the running softmax of the rows [M]."""
    b_s = tl.dot(b_q, b_k, input_precision=PRECISION) * (scale * LOG2_E)
    if MASKED:
        b_s = tl.where(visible, b_s, float("-inf"))
    m_new = tl.maximum(m_row, tl.max(b_s, 1))
    # A row that has seen no key yet keeps -inf, and must not subtract it from itself.
    m_safe = tl.where(m_new == float("-inf"), 0.0, m_new) if MASKED else m_new
    b_p = tl.math.exp2(b_s - m_safe[:, None])
    decay = tl.math.exp2(m_row - m_safe)
    b_o = b_o * decay[:, None] + tl.dot(b_p.to(b_v.dtype), b_v, input_precision=PRECISION)
    return m_new, l_row * decay + tl.sum(b_p, 1), b_o


@triton.jit
def _load(p, mask_n, mask_d, MASKED: tl.constexpr, WHOLE: tl.constexpr):
    """Load a tile of keys or values; masks that are true everywhere are left out because they prevent wide loads."""
    if MASKED:
        return tl.load(p, mask=mask_n & mask_d, other=0.0)
    if WHOLE:
        return tl.load(p)
    return tl.load(p, mask=mask_d, other=0.0)


@triton.jit
def _attend_committed(
    b_q,
    k_cache,
    v_cache,
    p_slots,
    stride_cache,
    i_h,
    i_n,
    stop,
    m_row,
    l_row,
    b_o,
    scale,
    D: tl.constexpr,
    BD: tl.constexpr,
    N: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fold the committed keys [i_n, i_n + N) into the running softmax; those at and past `stop` count unless MASKED."""
    o_key, o_d = i_n + tl.arange(0, N), tl.arange(0, BD)
    mask_key, mask_d = o_key < stop, o_d < D
    if MASKED:
        slot = tl.load(p_slots + o_key, mask=mask_key, other=0)
    else:
        slot = tl.load(p_slots + o_key)
    offset = slot.to(tl.int64) * stride_cache + i_h * D
    p_k, p_v = k_cache + offset[None, :] + o_d[:, None], v_cache + offset[:, None] + o_d[None, :]
    b_k = _load(p_k, mask_key[None, :], mask_d[:, None], MASKED, D == BD).to(b_q.dtype)
    b_v = _load(p_v, mask_key[:, None], mask_d[None, :], MASKED, D == BD).to(b_q.dtype)
    return _accumulate(b_q, b_k, b_v, mask_key[None, :], m_row, l_row, b_o, scale, MASKED, PRECISION)


@triton.jit
def split_kernel(
    q,
    k,
    v,
    k_cache,
    v_cache,
    slot_table,
    slot_rows,
    prefix_lens,
    visible_prefix,
    visible_lo,
    visible_hi,
    partial,
    log_sum,
    scale,
    stride_q,
    stride_k,
    stride_v,
    stride_slots,
    stride_cache,
    W: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    HKV: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    BW: tl.constexpr,
    BD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attend with rows [i_m * M, (i_m + 1) * M) of request row i_b and KV head i_h to the keys of split i_s.

    Committed keys come N at a time, the row's own, which are in split 0, BW at a time.
    """
    i_b, i_mh, i_s = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    i_m, i_h = i_mh // HKV, i_mh % HKV
    o_row = i_m * M + tl.arange(0, M)
    o_query, o_head = o_row // G, i_h * G + o_row % G
    o_d = tl.arange(0, BD)
    mask_row, mask_d = o_row < W * G, o_d < D
    p_q = q + (i_b * W + o_query[:, None]) * stride_q + o_head[:, None] * D + o_d[None, :]
    b_q = tl.load(p_q, mask=mask_row[:, None] & mask_d[None, :], other=0.0)

    prefix = tl.load(prefix_lens + i_b).to(tl.int32)
    p_slots = slot_table + tl.load(slot_rows + i_b).to(tl.int64) * stride_slots
    m_row = tl.full([M], float("-inf"), tl.float32)
    l_row = tl.zeros([M], tl.float32)
    b_o = tl.zeros([M, BD], tl.float32)

    span = tl.cdiv(tl.cdiv(prefix, tl.num_programs(2)), N) * N
    start = i_s * span
    stop = tl.minimum(start + span, prefix)
    whole = start + tl.maximum(stop - start, 0) // N * N
    for i_n in range(start, whole, N):
        m_row, l_row, b_o = _attend_committed(
            b_q, k_cache, v_cache, p_slots, stride_cache, i_h, i_n, stop, m_row, l_row, b_o, scale,
            D, BD, N, False, PRECISION,
        )  # fmt: skip
    if whole < stop:
        m_row, l_row, b_o = _attend_committed(
            b_q, k_cache, v_cache, p_slots, stride_cache, i_h, whole, stop, m_row, l_row, b_o, scale,
            D, BD, N, True, PRECISION,
        )  # fmt: skip

    if i_s == 0:
        o_seen = i_b * W + o_query
        b_prefix = tl.load(visible_prefix + o_seen, mask=mask_row, other=0)[:, None]
        b_lo = tl.load(visible_lo + o_seen, mask=mask_row, other=0)[:, None]
        b_hi = tl.load(visible_hi + o_seen, mask=mask_row, other=0)[:, None]
        # Not a loop: in one, the assembler for compute capability 8.0 runs out of registers.
        for i_new in tl.static_range(0, W, BW):
            o_new = i_new + tl.arange(0, BW)
            mask_new = o_new < W
            mask_k, mask_v = mask_new[None, :] & mask_d[:, None], mask_new[:, None] & mask_d[None, :]
            p_k = k + (i_b * W + o_new[None, :]) * stride_k + i_h * D + o_d[:, None]
            p_v = v + (i_b * W + o_new[:, None]) * stride_v + i_h * D + o_d[None, :]
            b_k = tl.load(p_k, mask=mask_k, other=0.0)
            b_v = tl.load(p_v, mask=mask_v, other=0.0)
            visible = (o_new[None, :] < b_prefix) | ((o_new[None, :] >= b_lo) & (o_new[None, :] < b_hi))
            m_row, l_row, b_o = _accumulate(b_q, b_k, b_v, visible, m_row, l_row, b_o, scale, True, PRECISION)

    i_out = ((i_s * tl.num_programs(0) + i_b) * HKV + i_h) * (W * G) + o_row
    log_l = tl.math.log2(tl.where(l_row > 0, l_row, 1.0))
    tl.store(log_sum + i_out, tl.where(l_row > 0, m_row + log_l, float("-inf")), mask=mask_row)
    if i_s == 0 or start < stop:  # else the merge reads none of it
        b_o = b_o / tl.where(l_row > 0, l_row, 1.0)[:, None]
        mask_o = mask_row[:, None] & mask_d[None, :]
        tl.store(partial + i_out[:, None] * D + o_d[None, :], b_o, mask=mask_o)


@triton.jit
def merge_kernel(
    partial,
    log_sum,
    out,
    num_rows,
    W: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    HKV: tl.constexpr,
    BD: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Merge the splits of one query of one head, weighted by their share of the softmax's sum."""
    i_row = tl.program_id(0).to(tl.int64)
    o_s, o_d = tl.arange(0, SPLITS), tl.arange(0, BD)
    mask_d = o_d < D
    weight = tl.load(log_sum + o_s * num_rows + i_row)
    # Split 0 holds the row's own keys. A row that sees none of them either is padding.
    mask_o = ((weight > float("-inf")) | (o_s == 0))[:, None] & mask_d[None, :]
    top = tl.max(weight, 0)
    weight = tl.math.exp2(weight - tl.where(top == float("-inf"), 0.0, top))
    weight = weight / tl.maximum(tl.sum(weight, 0), 1e-30)
    b_o = tl.load(partial + (o_s[:, None] * num_rows + i_row) * D + o_d[None, :], mask=mask_o, other=0.0)
    i_bh, i_wg = i_row // (W * G), i_row % (W * G)
    i_b, i_h = i_bh // HKV, i_bh % HKV
    p_out = out + ((i_b * W + i_wg // G) * (HKV * G) + i_h * G + i_wg % G) * D
    tl.store(p_out + o_d, tl.sum(b_o * weight[:, None], 0).to(out.dtype.element_ty), mask=mask_d)
