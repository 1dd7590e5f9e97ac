"""How fast block attention is by how it is launched; what `_launch` in its Triton file was chosen from.

python benchmarks/block_attention_launches.py     # writes benchmarks/results/block_attention_launches.json
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import partial
from unittest import mock

import report
import timing
import torch
from block_attention import HEAD_DIM, NUM_HEADS, NUM_KV_HEADS, SHAPES, arguments
from dlm_kernels.block_attention import triton as kernels

TILES, KEYS, WARPS, STAGES = (32, 64, 128), (32, 64, 128), (2, 4, 8), (2, 3, 4)
NUM_MULTIPROCESSORS = 132


def launches(batch: int, width: int) -> Iterator[kernels._Launch]:
    """Tiles no larger than needed, with half to eight programs for each multiprocessor."""
    num_rows = width * NUM_HEADS // NUM_KV_HEADS
    for tile, keys, num_warps, num_stages in itertools.product(TILES, KEYS, WARPS, STAGES):
        if not num_rows // 2 <= tile <= num_rows or (tile > 32 and num_warps == 2):
            continue
        programs = batch * NUM_KV_HEADS * (num_rows // tile)
        wanted = {2 ** round(math.log2(max(1, m * NUM_MULTIPROCESSORS / programs))) for m in (0.5, 1, 2, 4, 8)}
        for splits in sorted(min(64, splits) for splits in wanted):
            yield kernels._Launch(tile, keys, splits, num_warps, num_stages)


def measure(batch: int, prefix: int, width: int) -> dict[str, float]:
    """Microseconds by launch, fastest first."""
    moved = 2 * batch * (prefix + width) * NUM_KV_HEADS * HEAD_DIM * 2
    layers = max(1, min(16, math.ceil(1e9 / moved), int(40e9 // moved)))
    calls = [
        partial(kernels.block_attention, **args)
        for args in arguments(batch, prefix, width, torch.bfloat16, layers, ragged=False)
    ]
    times = {}
    for launch in launches(batch, width):
        name = f"tile {launch.tile}, keys {launch.keys}, warps {launch.num_warps}, stages {launch.num_stages}"
        with mock.patch.object(kernels, "_launch", return_value=launch):
            times[f"{name}, splits {launch.splits}"] = timing.median_us(calls, repeats=7)
    return dict(sorted(times.items(), key=lambda entry: entry[1]))


def main() -> None:
    torch.manual_seed(0)
    rows = {}
    for shape in SHAPES:
        times = measure(*shape)
        rows[" x ".join(map(str, shape))] = times
        print(shape, *list(times.items())[:3])
    report.write("block_attention_launches", {"us by batch x prefix x width": rows}, "torch", "triton")


if __name__ == "__main__":
    main()
