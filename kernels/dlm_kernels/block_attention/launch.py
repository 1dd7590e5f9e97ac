"""Launch block attention on a GPU: choose the kernel and the number of programs.

The committed keys of a row are cut into splits that run in parallel, so that one long request fills the
GPU; a second kernel merges them. Shapes alone decide the grid and lengths are read from tensors, so a
captured graph serves rows of any length, whatever their tokens see of one another, without synchronising.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton

from dlm_kernels.block_attention import triton as kernels
from dlm_kernels.block_attention.reference import Visible

MAX_SPLITS = 32
KEYS = 64
"""Keys that the Triton kernel reads at a time."""
SMALL_BATCH = 16
"""(request, KV head) pairs up to which two small tiles in parallel beat one large tile."""


@dataclass(frozen=True)
class Launch:
    """Launch parameters of the split kernel."""

    kernel: Any
    tile: int
    """Query rows per program."""
    keys: int
    """Keys read at a time."""
    splits: int
    """Number of parts a request's committed keys are cut into."""
    options: dict[str, Any]
    """Arguments that only this kernel takes."""


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
    """Compute `reference.block_attention` for head dimensions of 16 to 256.

    Raises ValueError for shapes or memory layouts that the kernels cannot read.
    """
    batch, width, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[2]
    _check(q, k, v, k_cache, v_cache, slot_table, visible)
    group = num_heads // num_kv_heads
    launch = choose(batch * num_kv_heads, width, group, head_dim, q.dtype, q.device)
    num_tiles = triton.cdiv(width * group, launch.tile)
    num_rows = batch * num_kv_heads * width * group
    partial = torch.empty(launch.splits, num_rows, head_dim, dtype=torch.float32, device=q.device)
    log_sum = torch.empty(launch.splits, num_rows, dtype=torch.float32, device=q.device)
    shapes = {"W": width, "G": group, "D": head_dim, "HKV": num_kv_heads}
    launch.kernel[(batch, num_tiles * num_kv_heads, launch.splits)](
        q,
        k,
        v,
        k_cache,
        v_cache,
        slot_table,
        slot_rows,
        prefix_lens,
        *visible,
        partial,
        log_sum,
        scale,
        _token_stride(q),
        _token_stride(k),
        _token_stride(v),
        slot_table.stride(0),
        k_cache.stride(0),
        **shapes,
        M=launch.tile,
        N=launch.keys,
        **launch.options,
    )
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    merge = {"BD": triton.next_power_of_2(head_dim), "SPLITS": launch.splits, "num_warps": 1}
    kernels.merge_kernel[(num_rows,)](partial, log_sum, out, num_rows, **shapes, **merge)
    return out


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_table: torch.Tensor,
    visible: Visible,
) -> None:
    head_dim, num_kv_heads = q.shape[3], k.shape[2]
    if not 16 <= head_dim <= 256:
        raise ValueError(f"head_dim = {head_dim}: must be in [16, 256]")
    if q.shape[2] % num_kv_heads:
        raise ValueError(f"num_heads = {q.shape[2]}: must be a multiple of the {num_kv_heads} KV heads")
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        strides = tensor.stride()
        follow = tensor.shape[0] == 1 or strides[0] == tensor.shape[1] * _token_stride(tensor)
        if strides[2:] != (head_dim, 1) or not follow:
            raise ValueError(f"{name}: heads and rows of tokens must be contiguous, but strides are {strides}")
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if cache.stride() != k_cache.stride() or cache.stride()[1:] != (head_dim, 1):
            raise ValueError(f"{name}: must be [slots, {num_kv_heads}, {head_dim}] with contiguous heads")
    if slot_table.stride(1) != 1:
        raise ValueError("slot_table: its rows must be contiguous")
    for name, tensor in visible._asdict().items():
        if tensor.shape != q.shape[:2] or not tensor.is_contiguous():
            raise ValueError(f"visible.{name}: must be contiguous and of shape {list(q.shape[:2])}")


def _token_stride(tensor: torch.Tensor) -> int:
    """Return the stride between tokens; rows of one token lie as far apart as their tokens."""
    return tensor.stride(0) if tensor.shape[1] == 1 else tensor.stride(1)


def choose(num_groups: int, width: int, group: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> Launch:
    """Return the launch that was fastest on an H200, with a smaller tile where a card has less shared memory.

    Each of the `num_groups` (request, KV head) pairs has `width * group` query rows.
    """
    if _is_for_hopper(width * group, head_dim, dtype, device):
        return _on_hopper(num_groups, width * group, device)
    largest = 64 if num_groups <= SMALL_BATCH else 128
    tile = max(16, min(largest, triton.next_power_of_2(width * group)))
    while tile > 16 and _shared_bytes(tile, head_dim, dtype) > _shared_memory(device):
        tile //= 2
    programs_at_once = _num_multiprocessors(device) * (4 if tile <= 32 else 2)
    options = {
        "BW": max(16, min(KEYS, triton.next_power_of_2(width))),
        "BD": triton.next_power_of_2(head_dim),
        "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
        "num_warps": 2 if tile <= 32 else 4,
        "num_stages": 3,
    }
    splits = _splits(programs_at_once // (num_groups * triton.cdiv(width * group, tile)))
    return Launch(kernels.split_kernel, tile, KEYS, splits, options)


def _is_for_hopper(num_rows: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether `hopper.split_kernel` can serve these shapes with more than half of its tile in use."""
    fits = num_rows > 64 and head_dim in (64, 128) and dtype in (torch.bfloat16, torch.float16)
    # AMD's MI300 calls itself 9.4.
    return fits and device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


def _shared_bytes(tile: int, head_dim: int, dtype: torch.dtype) -> int:
    """Return the shared memory of the Triton kernel: a tile of keys, of values, of queries, and of their products.

    What the compiler takes for compute capabilities 8.0 to 12.0 is as much or, with small heads, less.
    """
    size = triton.next_power_of_2(head_dim)
    num_bytes: int = dtype.itemsize * (2 * KEYS * size + tile * size + tile * KEYS)
    return num_bytes


@lru_cache
def _shared_memory(device: torch.device) -> float:
    """Return the bytes of shared memory that a program may have on `device`."""
    if device.type != "cuda":
        return math.inf
    index = torch.cuda.current_device() if device.index is None else device.index
    return int(triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"])


def _on_hopper(num_groups: int, num_rows: int, device: torch.device) -> Launch:
    # Imported only where it is used: Gluon is experimental, and other machines can do without it.
    from dlm_kernels.block_attention import hopper

    programs = num_groups * triton.cdiv(num_rows, hopper.TILE)
    options = {"STAGES": hopper.STAGES, "num_warps": hopper.NUM_WARPS}
    splits = _splits(_num_multiprocessors(device) // programs)
    return Launch(hopper.split_kernel, hopper.TILE, hopper.KEYS, splits, options)


def _splits(wanted: int) -> int:
    """Return the largest power of two up to `wanted` that the merge supports."""
    return min(MAX_SPLITS, 1 << int(math.log2(max(1, wanted))))


@lru_cache
def _num_multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 1
