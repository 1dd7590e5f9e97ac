"""Time block attention by launch parameters; `choose` in its launch.py was derived from this.

python benchmarks/block_attention_launches.py     # writes benchmarks/results/block_attention_launches.json
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import report
import timing
import torch
from block_attention import HEAD_DIM, NUM_HEADS, NUM_KV_HEADS, SHAPES, arguments
from dlm_kernels.block_attention import hopper, launch, triton
from dlm_kernels.block_attention.launch import Launch

NUM_MULTIPROCESSORS = 132


def launches(batch: int, width: int) -> Iterator[tuple[str, Launch]]:
    """Yield names and launches: the Hopper kernel for wide rows, the Triton kernel with tiles no larger than needed."""
    num_rows = width * NUM_HEADS // NUM_KV_HEADS
    if num_rows > hopper.TILE // 2:
        for stages, splits in itertools.product((2, 3, 4), splits_of(batch, num_rows, hopper.TILE)):
            options = {"STAGES": stages, "num_warps": hopper.NUM_WARPS}
            name = f"hopper, stages {stages}, splits {splits}"
            yield name, Launch(hopper.split_kernel, hopper.TILE, hopper.KEYS, splits, options)
    fixed: dict[str, Any] = {"BW": max(16, min(launch.KEYS, width)), "BD": HEAD_DIM, "PRECISION": "tf32"}
    for tile, keys, warps, stages in itertools.product((32, 64, 128), (32, 64, 128), (2, 4), (2, 3)):
        if not num_rows // 2 <= tile <= num_rows or (tile > 32 and warps == 2):
            continue
        options = {**fixed, "num_warps": warps, "num_stages": stages}
        for splits in splits_of(batch, num_rows, tile):
            name = f"triton, tile {tile}, keys {keys}, warps {warps}, stages {stages}, splits {splits}"
            yield name, Launch(triton.split_kernel, tile, keys, splits, options)


def splits_of(batch: int, num_rows: int, tile: int) -> list[int]:
    """Return split counts that give half to four programs per multiprocessor."""
    programs = batch * NUM_KV_HEADS * (num_rows // tile)
    wanted = {2 ** round(math.log2(max(1, m * NUM_MULTIPROCESSORS / programs))) for m in (0.5, 1, 2, 4)}
    return sorted(splits for splits in wanted if splits <= launch.MAX_SPLITS)


def measure(batch: int, prefix: int, width: int) -> dict[str, float]:
    """Return microseconds by launch, fastest first."""
    moved = 2 * batch * (prefix + width) * NUM_KV_HEADS * HEAD_DIM * 2
    layers = max(1, min(16, math.ceil(1e9 / moved), int(40e9 // moved)))
    calls = [
        partial(launch.block_attention, **args)
        for args in arguments(batch, prefix, width, torch.bfloat16, layers, ragged=False)
    ]
    times = {}
    for name, chosen in launches(batch, width):
        with mock.patch.object(launch, "choose", return_value=chosen):
            times[name] = timing.median_us(calls, repeats=7)
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
