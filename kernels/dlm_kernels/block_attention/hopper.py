"""Split kernel of block attention for wide rows on Hopper, in Gluon.

It does by hand what the Triton compiler does not: one group of warps loads keys and values, and two others attend to
them, each with half of the query rows. While such a group computes the softmax of one tile, the tensor cores compute
its product with the previous tile's values and the products of the other group (FlashAttention-3, Shah et al. 2024,
section 3).
"""

from __future__ import annotations

import triton.experimental.gluon.language as gl
from triton.experimental import gluon
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from dlm_kernels.block_attention.hopper_groups import WARPS, attend, load

TILE = 128
"""Query rows per program."""
KEYS = 64
"""Keys per tile."""
STAGES = 4
"""Tiles of keys, and of values, in shared memory at a time."""
NUM_WARPS = WARPS.value
"""Warps in each of the three groups."""
LOAD_REGISTERS = gl.constexpr(56)
ATTEND_REGISTERS = gl.constexpr(216)


@gluon.jit
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
    W: gl.constexpr,
    G: gl.constexpr,
    D: gl.constexpr,
    HKV: gl.constexpr,
    M: gl.constexpr,
    N: gl.constexpr,
    STAGES: gl.constexpr,
    num_warps: gl.constexpr,
):
    """Compute `triton.split_kernel` for 16-bit types and `D` 64 or 128."""
    dtype: gl.constexpr = q.dtype.element_ty
    SHARED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    HALF: gl.constexpr = M // 2
    i_b, i_mh, i_s = gl.program_id(0).to(gl.int64), gl.program_id(1), gl.program_id(2)
    i_m, i_h = i_mh // HKV, i_mh % HKV
    prefix = gl.load(prefix_lens + i_b).to(gl.int32)
    span = gl.cdiv(gl.cdiv(prefix, gl.num_programs(2)), N) * N
    start = i_s * span
    num_keys = gl.maximum(gl.minimum(start + span, prefix) - start, 0)
    p_slots = slot_table + gl.load(slot_rows + i_b).to(gl.int64) * stride_slots + start
    p_q = q + i_b * W * stride_q + i_h * G * D
    p_k, p_v = k + i_b * W * stride_k + i_h * D, v + i_b * W * stride_v + i_h * D
    i_out = ((i_s * gl.num_programs(0) + i_b) * HKV + i_h) * (W * G)
    p_partial, p_sum = partial + i_out * D, log_sum + i_out
    p_prefix, p_lo, p_hi = visible_prefix + i_b * W, visible_lo + i_b * W, visible_hi + i_b * W
    num_own = gl.where(i_s == 0, gl.cdiv(W, N), 0)  # the row's own keys are in split 0

    k_ring = gl.allocate_shared_memory(dtype, [STAGES, N, D], SHARED)
    v_ring = gl.allocate_shared_memory(dtype, [STAGES, N, D], SHARED)
    b_q = gl.allocate_shared_memory(dtype, [2, HALF, D], SHARED)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i_stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i_stage), count=32 * num_warps)
        mbarrier.init(v_full.index(i_stage), count=32 * num_warps)
        mbarrier.init(k_empty.index(i_stage), count=2)
        mbarrier.init(v_empty.index(i_stage), count=2)

    gl.warp_specialize(
        [
            (
                attend,
                (
                    p_q, p_partial, p_sum, stride_q, scale, p_prefix, p_lo, p_hi, num_keys, num_own,
                    i_m * M, b_q.index(0), k_ring, v_ring, k_full, v_full, k_empty, v_empty,
                    W, G, D, HALF, N, STAGES,
                ),
            ),
            (
                attend,
                (
                    p_q, p_partial, p_sum, stride_q, scale, p_prefix, p_lo, p_hi, num_keys, num_own,
                    i_m * M + HALF, b_q.index(1), k_ring, v_ring, k_full, v_full, k_empty, v_empty,
                    W, G, D, HALF, N, STAGES,
                ),
            ),
            (
                load,
                (
                    p_k, p_v, k_cache + i_h * D, v_cache + i_h * D, p_slots, stride_k, stride_v, stride_cache, num_keys,
                    num_own, k_ring, v_ring, k_full, v_full, k_empty, v_empty, W, D, N, STAGES,
                ),
            ),
        ],
        [num_warps, num_warps],
        [ATTEND_REGISTERS, LOAD_REGISTERS],
    )  # fmt: skip
