"""Block attention in Triton: one tile holds all query heads of a KV head for a stretch of a row.

The committed keys of a row are cut into splits that run side by side, so that one long request fills the
GPU; a second kernel merges them. Shapes alone decide the grid and lengths are read from tensors, so a
captured graph serves rows of any length, any mix of `causal_len` and `new_len`, without synchronising.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl

MAX_SPLITS = 32
SMALL_BATCH = 16
"""(request, KV head) pairs up to which two small tiles side by side beat a large one."""
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _accumulate(b_q, b_k, b_v, visible, m_row, l_row, b_o, scale, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """One tile of keys [D, N] and values [N, D] into the running softmax of the rows [M]."""
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
    """A tile of keys or values; masks that hold everywhere are left out, since they cost wide loads."""
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
    """The committed keys [i_n, i_n + N) into the running softmax; those at and past `stop` count if not MASKED."""
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
def _split_kernel(
    q,
    k,
    v,
    k_cache,
    v_cache,
    slot_table,
    slot_rows,
    prefix_lens,
    causal_len,
    new_len,
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
    """Attention of the rows [i_m * M, (i_m + 1) * M) of request row i_b and KV head i_h over the keys of split i_s."""
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
        causal, new = tl.load(causal_len + i_b), tl.load(new_len + i_b)
        o_new = tl.arange(0, BW)
        mask_new = o_new < W
        mask_k, mask_v = mask_new[None, :] & mask_d[:, None], mask_new[:, None] & mask_d[None, :]
        p_k = k + (i_b * W + o_new[None, :]) * stride_k + i_h * D + o_d[:, None]
        p_v = v + (i_b * W + o_new[:, None]) * stride_v + i_h * D + o_d[None, :]
        b_k = tl.load(p_k, mask=mask_k, other=0.0)
        b_v = tl.load(p_v, mask=mask_v, other=0.0)
        visible = (o_new[None, :] < new) & ((o_new[None, :] <= o_query[:, None]) | (o_query[:, None] >= causal))
        m_row, l_row, b_o = _accumulate(b_q, b_k, b_v, visible, m_row, l_row, b_o, scale, True, PRECISION)

    i_out = ((i_s * tl.num_programs(0) + i_b) * HKV + i_h) * (W * G) + o_row
    log_l = tl.math.log2(tl.where(l_row > 0, l_row, 1.0))
    tl.store(log_sum + i_out, tl.where(l_row > 0, m_row + log_l, float("-inf")), mask=mask_row)
    if i_s == 0 or start < stop:  # else the merge reads none of it
        b_o = b_o / tl.where(l_row > 0, l_row, 1.0)[:, None]
        mask_o = mask_row[:, None] & mask_d[None, :]
        tl.store(partial + i_out[:, None] * D + o_d[None, :], b_o, mask=mask_o)


@triton.jit
def _merge_kernel(
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
    """The splits of one query of one head, weighted by their share of the softmax's sum."""
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
    """As `reference.block_attention`, for head dimensions of 16 to 256.

    Raises ValueError for shapes or layouts that the kernels do not read.
    """
    batch, width, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[2]
    _check(q, k, v, k_cache, v_cache, slot_table)
    group = num_heads // num_kv_heads
    launch = _launch(batch * num_kv_heads, width * group, q.device)
    num_tiles = triton.cdiv(width * group, launch.tile)
    num_rows = batch * num_kv_heads * width * group
    partial = torch.empty(launch.splits, num_rows, head_dim, dtype=torch.float32, device=q.device)
    log_sum = torch.empty(launch.splits, num_rows, dtype=torch.float32, device=q.device)
    shapes = {"W": width, "G": group, "D": head_dim, "HKV": num_kv_heads, "BD": triton.next_power_of_2(head_dim)}
    _split_kernel[(batch, num_tiles * num_kv_heads, launch.splits)](
        q,
        k,
        v,
        k_cache,
        v_cache,
        slot_table,
        slot_rows,
        prefix_lens,
        causal_len,
        new_len,
        partial,
        log_sum,
        scale,
        q.stride(1),
        k.stride(1),
        v.stride(1),
        slot_table.stride(0),
        k_cache.stride(0),
        **shapes,
        M=launch.tile,
        N=launch.keys,
        BW=max(16, triton.next_power_of_2(width)),
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    _merge_kernel[(num_rows,)](partial, log_sum, out, num_rows, **shapes, SPLITS=launch.splits, num_warps=1)
    return out


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_table: torch.Tensor,
) -> None:
    head_dim, num_kv_heads = q.shape[3], k.shape[2]
    if not 16 <= head_dim <= 256:
        raise ValueError(f"head_dim = {head_dim}: must be in [16, 256]")
    if q.shape[2] % num_kv_heads:
        raise ValueError(f"num_heads = {q.shape[2]}: must be a multiple of the {num_kv_heads} KV heads")
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        strides = tensor.stride()
        if strides[2:] != (head_dim, 1) or (tensor.shape[0] > 1 and strides[0] != tensor.shape[1] * strides[1]):
            raise ValueError(f"{name}: heads and rows of tokens must be contiguous, but strides are {strides}")
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if cache.stride() != k_cache.stride() or cache.stride()[1:] != (head_dim, 1):
            raise ValueError(f"{name}: must be [slots, {num_kv_heads}, {head_dim}] with contiguous heads")
    if slot_table.stride(1) != 1:
        raise ValueError("slot_table: its rows must be contiguous")


@dataclass(frozen=True)
class _Launch:
    """How the split kernel is launched."""

    tile: int
    """Query rows of a program."""
    keys: int
    """Keys that it reads at a time."""
    splits: int
    """Parts that a request's committed keys are cut into."""
    num_warps: int
    num_stages: int


def _launch(num_groups: int, num_rows: int, device: torch.device) -> _Launch:
    """What was fastest on an H200 for `num_rows` query rows of each of `num_groups` (request, KV head) pairs."""
    largest = 64 if num_groups <= SMALL_BATCH else 128
    tile = max(16, min(largest, triton.next_power_of_2(num_rows)))
    programs_at_once = _num_multiprocessors(device) * (4 if tile <= 32 else 2)
    splits = programs_at_once // (num_groups * triton.cdiv(num_rows, tile))
    splits = min(MAX_SPLITS, 2 ** int(math.log2(max(1, splits))))
    return _Launch(tile, keys=64, splits=splits, num_warps=2 if tile <= 32 else 4, num_stages=3)


@lru_cache
def _num_multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 1
