"""Check block attention on a GPU against its reference, then time it against memory bandwidth.

    python benchmarks/block_attention.py     # prints a table, writes benchmarks/results/block_attention.json

Nothing is timed unless all outputs are right. A time is the median over replays of a CUDA graph that reads
another layer's keys and values in each call, so that none are in the cache. If SGLang's FlashAttention-3 is
installed, it is timed on the same rows as SGLang calls it: causal, with the rows' own keys in the KV cache.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "kernels"))

import report  # noqa: E402
import timing  # noqa: E402
from dlm_kernels.block_attention import Visible, block_attention, reference  # noqa: E402

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 32, 8, 128
SHAPES = [
    (1, 1024, 32),
    (1, 8192, 32),
    (1, 32768, 32),
    (1, 131072, 32),
    (8, 8192, 32),
    (32, 1024, 8),
    (32, 8192, 8),
    (128, 1024, 8),
    (128, 8192, 8),
]
BRANCHED = [(1, prefix, width) for width in (64, 96, 128) for prefix in (1024, 8192, 32768, 131072)]
"""Rows of one-forward self-speculation."""
GROUP = 8
"""Masks in each of their groups."""


def branches(batch: int, width: int) -> Visible:
    """Return what rows see that are a causal chain, a third of the row, then groups that branch off all along it."""
    column = torch.arange(width, device="cuda")
    chain = width // 3
    group = (column - chain) // GROUP
    anchor, lo = group * chain // math.ceil((width - chain) / GROUP), chain + group * GROUP
    in_chain = column < chain
    prefix = torch.where(in_chain, column, anchor) + 1
    lo, hi = lo.masked_fill(in_chain, 0), (lo + GROUP).clamp(max=width).masked_fill(in_chain, 0)
    return Visible(*(tensor.int().expand(batch, -1).contiguous() for tensor in (prefix, lo, hi)))


def arguments(
    batch: int, prefix: int, width: int, dtype: torch.dtype, layers: int, ragged: bool
) -> list[dict[str, Any]]:
    """Return the arguments of one call per layer; `ragged` rows differ in length and in what they see."""
    device, slots = "cuda", batch * (prefix + width) + 1
    table = (torch.randperm(slots - 1, device=device) + 1).view(batch, -1).int()
    rows = torch.arange(batch, device=device)
    lens = prefix - (rows * 37 % max(1, prefix // 2)) if ragged else torch.full_like(rows, prefix)
    new_len = width - (rows % width if ragged else torch.zeros_like(rows))
    shared = {
        "slot_table": table,
        "slot_rows": rows,
        "prefix_lens": lens,
        "visible": Visible.of(torch.where(rows % 2 == 0, 0, width), new_len, width),
        "scale": HEAD_DIM**-0.5,
    }
    cache, new = (slots, NUM_KV_HEADS, HEAD_DIM), (batch, width, NUM_KV_HEADS, HEAD_DIM)
    sizes = {"q": (batch, width, NUM_HEADS, HEAD_DIM), "k": new, "v": new, "k_cache": cache, "v_cache": cache}
    return [
        {**shared, **{name: torch.randn(size, device=device, dtype=dtype) for name, size in sizes.items()}}
        for _ in range(layers)
    ]


def layers_of(batch: int, prefix: int, width: int) -> tuple[int, int]:
    """Return how many bytes a call reads, and of how many layers a graph must read so that none are in the cache."""
    moved = 2 * batch * (prefix + width) * NUM_KV_HEADS * HEAD_DIM * 2
    return moved, max(1, min(34, math.ceil(2e9 / moved), int(60e9 // moved)))


def check(batch: int, prefix: int, width: int, dtype: torch.dtype, branched: bool) -> float:
    """Return the kernels' error over what is allowed: twice the reference's in this precision, plus a rounding."""
    args = arguments(batch, prefix, width, dtype, layers=1, ragged=True)[0]
    if branched:
        args["visible"] = branches(batch, width)
    wide: dict[str, Any] = {
        name: t.double() if torch.is_tensor(t) and t.is_floating_point() else t for name, t in args.items()
    }
    exact = reference.block_attention(**wide)
    own = (reference.block_attention(**args).double() - exact).abs().max()
    error = (block_attention(**args).double() - exact).abs().max()
    return float(error / (2 * own + torch.finfo(dtype).eps * exact.abs().max()))


def flash_attention_us(calls: list[dict[str, Any]], prefix: int) -> float | None:
    """Return the microseconds of FlashAttention-3 for the same `calls`, or None if it is not installed."""
    try:
        from sgl_kernel.flash_attn import flash_attn_with_kvcache
    except ImportError:
        return None
    batch, width = calls[0]["q"].shape[:2]
    lens = torch.full((batch,), prefix + width, device="cuda", dtype=torch.int32)
    starts = torch.arange(batch + 1, device="cuda", dtype=torch.int32) * width
    return timing.median_us(
        [
            partial(
                flash_attn_with_kvcache,
                q=args["q"].flatten(0, 1),
                k_cache=args["k_cache"][:, None],
                v_cache=args["v_cache"][:, None],
                page_table=args["slot_table"],
                cache_seqlens=lens,
                cu_seqlens_q=starts,
                max_seqlen_q=width,
                softmax_scale=args["scale"],
                causal=True,
            )
            for args in calls
        ]
    )


def measure(batch: int, prefix: int, width: int, bandwidth: float) -> dict[str, float]:
    """Return the time of contiguous rows, against copying what they read and against FlashAttention-3."""
    moved, layers = layers_of(batch, prefix, width)
    calls = arguments(batch, prefix, width, torch.bfloat16, layers, False)
    microseconds = timing.median_us([partial(block_attention, **args) for args in calls])
    floor = moved / bandwidth * 1e6
    row = {"us": microseconds, "floor_us": floor, "share": floor / microseconds}
    flash = flash_attention_us(calls, prefix)
    return row if flash is None else {**row, "flash_attention_3_us": flash}


def compare(batch: int, prefix: int, width: int) -> dict[str, float]:
    """Return the time of rows with branches, and that of causal rows over the same keys."""
    calls = arguments(batch, prefix, width, torch.bfloat16, layers_of(batch, prefix, width)[1], False)
    whole = torch.full((batch,), width, device="cuda")
    kinds = {"us": branches(batch, width), "linear_us": Visible.of(whole, whole, width)}
    row = {
        name: timing.median_us([partial(block_attention, **{**args, "visible": visible}) for args in calls])
        for name, visible in kinds.items()
    }
    return {**row, "ratio": row["us"] / row["linear_us"]}


def main() -> None:
    torch.manual_seed(0)
    contiguous = ((1, 1, 1), (3, 300, 5), (4, 1000, 8), (2, 2000, 32), (2, 130, 64), (64, 513, 4), (2, 300, 96))
    branched = ((2, 300, 16), (1, 2000, 64), (2, 130, 96), (1, 1, 128), (3, 500, 192))
    gates = {
        f"{batch}x{prefix}x{width} {dtype}{' branched' * is_branched}": check(batch, prefix, width, dtype, is_branched)
        for dtype in (torch.bfloat16, torch.float16)
        for shapes, is_branched in ((contiguous, False), (branched, True))
        for batch, prefix, width in shapes
    }
    print({name: round(ratio, 2) for name, ratio in gates.items()})
    if not all(ratio <= 1 for ratio in gates.values()):
        raise SystemExit("the kernels are not right: nothing is timed")
    bandwidth = timing.copy_bandwidth()
    rows, one_forward = {}, {}
    for shape in SHAPES:
        row = rows[" x ".join(map(str, shape))] = measure(*shape, bandwidth)
        print(shape, {name: round(value, 2) for name, value in row.items()}, flush=True)
    for shape in BRANCHED:
        row = one_forward[" x ".join(map(str, shape))] = compare(*shape)
        print(shape, "branched", {name: round(value, 2) for name, value in row.items()}, flush=True)
    shape_of = {"num_heads": NUM_HEADS, "num_kv_heads": NUM_KV_HEADS, "head_dim": HEAD_DIM, "dtype": "bfloat16"}
    figures = {
        "shape": shape_of,
        "copy_bandwidth_bytes_per_s": bandwidth,
        "batch x prefix x width": rows,
        "rows with branches, batch x prefix x width": one_forward,
    }
    report.write("block_attention", figures, "torch", "triton")


if __name__ == "__main__":
    main()
