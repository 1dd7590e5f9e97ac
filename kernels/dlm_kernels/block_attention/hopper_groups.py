"""What the groups of warps of the Hopper kernel do: one loads keys and values, two attend to them."""

from __future__ import annotations

import triton.experimental.gluon.language as gl
from triton.experimental import gluon
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

WARPS = gl.constexpr(4)
"""Warps in each group."""
LOG2_E = gl.constexpr(1.4426950408889634)


@gluon.jit
def _load_tile(p_tile, mask, ring, full, empty, i_tile, STAGES: gl.constexpr):
    """Start copying a tile [N, D] to its place in the ring once that is empty; `full` signals its arrival."""
    stage, parity = i_tile % STAGES, (i_tile // STAGES) & 1
    mbarrier.wait(empty.index(stage), parity ^ 1)
    async_copy.async_copy_global_to_shared(ring.index(stage), p_tile, mask=mask[:, None])
    async_copy.mbarrier_arrive(full.index(stage), increment_count=False)


@gluon.jit
def load(
    p_k,
    p_v,
    k_cache,
    v_cache,
    p_slots,
    stride_k,
    stride_v,
    stride_cache,
    num_keys,
    num_own,
    k_ring,
    v_ring,
    k_full,
    v_full,
    k_empty,
    v_empty,
    W: gl.constexpr,
    D: gl.constexpr,
    N: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Run the loading group: `num_own` tiles of the row's own keys, a partial last tile, then whole tiles."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [WARPS, 1], [1, 0])
    o_d = gl.arange(0, D, gl.SliceLayout(0, LAYOUT))
    o_key = gl.arange(0, N, gl.SliceLayout(1, LAYOUT))
    num_whole, num_left = num_keys // N, num_keys % N
    for i_own in range(num_own):
        o_own = i_own * N + o_key
        p_own = p_k + o_own[:, None] * stride_k + o_d[None, :]
        _load_tile(p_own, o_own < W, k_ring, k_full, k_empty, i_own, STAGES)
        p_own = p_v + o_own[:, None] * stride_v + o_d[None, :]
        _load_tile(p_own, o_own < W, v_ring, v_full, v_empty, i_own, STAGES)
    i_tile = num_own
    # Part -1 is what is left behind the whole tiles; it comes first, where the attending groups still mask.
    first = gl.where(num_left > 0, -1, 0)
    start = gl.where(num_left > 0, num_whole * N, 0)
    mask = start + o_key < num_keys
    slot = gl.load(p_slots + start + o_key, mask=mask, other=0)
    for i_part in range(first, num_whole):
        offset = slot.to(gl.int64)[:, None] * stride_cache + o_d[None, :]
        o_next = (i_part + 1) * N + o_key
        mask_next = (i_part + 1 < num_whole) & (o_key < N)
        slot = gl.load(p_slots + o_next, mask=mask_next, other=0)
        _load_tile(k_cache + offset, mask, k_ring, k_full, k_empty, i_tile, STAGES)
        _load_tile(v_cache + offset, mask, v_ring, v_full, v_empty, i_tile, STAGES)
        mask = mask_next
        i_tile += 1


@gluon.jit
def _soften(s, m_row, l_row, scale):
    """Fold a tile of raw scores [M, N] into the running softmax. Return its weights, new maximum and sum, and decay."""
    m_new = gl.maximum(m_row, gl.max(s, 1) * scale)
    # A row that has seen no key yet keeps -inf, and must not subtract it from itself.
    m_safe = gl.where(m_new == float("-inf"), 0.0, m_new)
    p = gl.exp2(s * scale - m_safe[:, None])
    decay = gl.exp2(m_row - m_safe)
    return p, m_new, l_row * decay + gl.sum(p, 1), decay


@gluon.jit
def attend(
    p_q,
    p_partial,
    p_sum,
    stride_q,
    scale,
    p_prefix,
    p_lo,
    p_hi,
    num_keys,
    num_own,
    i_row,
    b_q,
    k_ring,
    v_ring,
    k_full,
    v_full,
    k_empty,
    v_empty,
    W: gl.constexpr,
    G: gl.constexpr,
    D: gl.constexpr,
    M: gl.constexpr,
    N: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Run an attending group: the query rows [i_row, i_row + M) over all loaded tiles."""
    dtype: gl.constexpr = b_q.dtype
    LOAD: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [WARPS, 1], [1, 0])
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, N, 16])
    O: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, D, 16])
    P: gl.constexpr = gl.DotOperandLayout(0, O, 2)
    ROW: gl.constexpr = gl.SliceLayout(1, S)
    ROW_O: gl.constexpr = gl.SliceLayout(1, O)
    scale = scale * LOG2_E

    o_load = i_row + gl.arange(0, M, gl.SliceLayout(1, LOAD))
    offset = (o_load // G) * stride_q + (o_load % G) * D
    p_load = p_q + offset[:, None] + gl.arange(0, D, gl.SliceLayout(0, LOAD))[None, :]
    async_copy.async_copy_global_to_shared(b_q, p_load, mask=(o_load < W * G)[:, None])
    async_copy.commit_group()
    async_copy.wait_group(0)

    m_row = gl.full([M], float("-inf"), gl.float32, ROW)
    l_row = gl.zeros([M], gl.float32, ROW)
    b_o = gl.zeros([M, D], gl.float32, O)
    zeros = gl.zeros([M, N], gl.float32, S)
    o_col = gl.arange(0, N, gl.SliceLayout(0, S))[None, :]
    o_row = i_row + gl.arange(0, M, ROW)
    mask_seen = (o_row < W * G) & (num_own > 0)
    b_prefix = gl.load(p_prefix + o_row // G, mask=mask_seen, other=0)[:, None]
    b_lo = gl.load(p_lo + o_row // G, mask=mask_seen, other=0)[:, None]
    b_hi = gl.load(p_hi + o_row // G, mask=mask_seen, other=0)[:, None]
    num_left = num_keys % N
    num_masked = num_own + gl.where(num_left > 0, 1, 0)
    num_tiles = num_masked + num_keys // N
    for i_tile in range(num_masked):
        stage, parity = i_tile % STAGES, (i_tile // STAGES) & 1
        mbarrier.wait(k_full.index(stage), parity)
        fence_async_shared()
        s = warpgroup_mma(b_q, k_ring.index(stage).permute((1, 0)), zeros, use_acc=False)
        mbarrier.arrive(k_empty.index(stage), count=1)
        o_own = i_tile * N + o_col
        visible_own = (o_own < b_prefix) | ((o_own >= b_lo) & (o_own < b_hi))
        visible = gl.where(i_tile < num_own, visible_own, o_col < num_left)
        p, m_row, l_row, decay = _soften(gl.where(visible, s, float("-inf")), m_row, l_row, scale)
        b_o = b_o * gl.convert_layout(decay, ROW_O)[:, None]
        mbarrier.wait(v_full.index(stage), parity)
        fence_async_shared()
        b_o = warpgroup_mma(gl.convert_layout(p.to(dtype), P), v_ring.index(stage), b_o)
        mbarrier.arrive(v_empty.index(stage), count=1)

    if num_masked < num_tiles:
        stage, parity = num_masked % STAGES, (num_masked // STAGES) & 1
        mbarrier.wait(k_full.index(stage), parity)
        fence_async_shared()
        s = warpgroup_mma(b_q, k_ring.index(stage).permute((1, 0)), zeros, use_acc=False)
        mbarrier.arrive(k_empty.index(stage), count=1)
        p, m_row, l_row, decay = _soften(s, m_row, l_row, scale)
        b_o = b_o * gl.convert_layout(decay, ROW_O)[:, None]
        b_p = gl.convert_layout(p.to(dtype), P)
        for i_tile in range(num_masked + 1, num_tiles):
            mbarrier.wait(v_full.index(stage), parity)
            next_stage, next_parity = i_tile % STAGES, (i_tile // STAGES) & 1
            mbarrier.wait(k_full.index(next_stage), next_parity)
            fence_async_shared()
            s_token = warpgroup_mma(b_q, k_ring.index(next_stage).permute((1, 0)), zeros, use_acc=False, is_async=True)
            o_token = warpgroup_mma(b_p, v_ring.index(stage), b_o, is_async=True)
            s = warpgroup_mma_wait(1, deps=[s_token])
            mbarrier.arrive(k_empty.index(next_stage), count=1)
            p, m_row, l_row, decay = _soften(s, m_row, l_row, scale)
            b_o = warpgroup_mma_wait(0, deps=[o_token])
            mbarrier.arrive(v_empty.index(stage), count=1)
            b_o = b_o * gl.convert_layout(decay, ROW_O)[:, None]
            b_p = gl.convert_layout(p.to(dtype), P)
            stage, parity = next_stage, next_parity
        mbarrier.wait(v_full.index(stage), parity)
        fence_async_shared()
        b_o = warpgroup_mma(b_p, v_ring.index(stage), b_o)

    total = gl.where(l_row > 0, l_row, 1.0)
    gl.store(p_sum + o_row, gl.where(l_row > 0, m_row + gl.log2(total), float("-inf")), mask=o_row < W * G)
    if num_tiles > 0:  # else the merge reads none of it
        b_o = b_o / gl.convert_layout(total, ROW_O)[:, None]
        o_out = i_row + gl.arange(0, M, ROW_O)
        p_out = p_partial + o_out[:, None] * D + gl.arange(0, D, gl.SliceLayout(0, O))[None, :]
        gl.store(p_out, b_o, mask=(o_out < W * G)[:, None])
