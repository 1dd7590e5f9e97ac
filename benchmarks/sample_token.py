"""Check token choice on a GPU against its reference, then time it against memory bandwidth and against itself.

    python benchmarks/sample_token.py     # prints a table, writes benchmarks/results/sample_token.json

Nothing is timed unless all outputs are right.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "kernels"))

import report
import timing
from dlm_kernels.sample_token import Sampling, reference, sample_token

VOCAB_SIZE, MASK = 131072, 100
ROWS = (1, 8, 32, 64, 256, 1024)
WHOLE = 1 << 30
WAYS = {
    "greedy": None,
    "T 0.7": (0.7, WHOLE, 1.0),
    "T 0.7, top-p 0.9": (0.7, WHOLE, 0.9),
    "T 0.7, top-p 0.9, top-k 50": (0.7, 50, 0.9),
}
"""Temperature, top-k and top-p."""


def random_logits(num_rows: int) -> torch.Tensor:
    return (torch.randn(num_rows, VOCAB_SIZE, device="cuda") * 3).bfloat16()


def sampling_of(way: tuple[float, int, float] | None, num_rows: int) -> Sampling | None:
    """Return the sampling of `num_rows` requests of one token each; None if greedy."""
    if way is None:
        return None
    temperature, top_k, top_p = way
    ones = torch.ones(num_rows, device="cuda")
    return Sampling(
        ones * temperature, (ones * top_k).int(), ones * top_p, ones * 0, torch.arange(num_rows, device="cuda")
    )


def is_right(num_rows: int, way: tuple[float, int, float] | None) -> bool:
    """Return whether ids match the reference and the rest is within the float32 rounding of sums over a row.

    Where two noisy scores are within 1e-4 of each other, or a token is within 1e-4 of the edge of the nucleus, either
    of them is right: float32 tells them apart no better. Of a thousand rows that is less than one.
    """
    logits = random_logits(num_rows)
    bound = torch.finfo(torch.float32).eps * (math.log2(VOCAB_SIZE) + 2 * float(logits.abs().max()) + 4)
    positions, sampling = torch.arange(num_rows, device="cuda"), sampling_of(way, num_rows)
    own = reference.sample_token(logits, positions, sampling, exclude_id=MASK)
    ids, confidence, entropy = sample_token(logits, positions, sampling, exclude_id=MASK)
    same = ids == own[0]
    close = ((confidence - own[1]).abs() <= 2 * bound * own[1]) & ((entropy - own[2]).abs() <= 2 * bound * own[2])
    print(f"{num_rows:5} rows, {way}: {int((~same).sum())} tokens differ from the reference")
    return int((~same).sum()) <= (0 if way is None else 1) and bool(close[same].all())


def main() -> None:
    torch.manual_seed(0)
    if not all(is_right(num_rows, way) for num_rows in (1, 7, 256) for way in WAYS.values()):
        raise SystemExit("the kernels are not right: nothing is timed")
    bandwidth, rows = timing.copy_bandwidth(), {}
    for num_rows in ROWS:
        batches = [random_logits(num_rows) for _ in range(max(2, min(64, 4096 // num_rows)))]
        positions = torch.arange(num_rows, device="cuda")
        us = {}
        for name, way in WAYS.items():
            sampling = sampling_of(way, num_rows)
            calls = [partial(sample_token, logits, positions, sampling, exclude_id=MASK) for logits in batches]
            us[name] = timing.median_us(calls)
        floor = num_rows * VOCAB_SIZE * 2 / bandwidth * 1e6
        rows[str(num_rows)] = {"us": us, "floor_us": floor, "share": floor / us["greedy"]}
        others = ", ".join(f"{name} {value:.1f} us ({value / us['greedy']:.2f})" for name, value in us.items())
        print(f"{num_rows:5} rows: {others}; greedy at {floor / us['greedy']:.0%} of the memory's speed")
    figures = {"vocab_size": VOCAB_SIZE, "copy_bandwidth_bytes_per_s": bandwidth, "rows": rows}
    report.write("sample_token", figures, "torch", "triton")


if __name__ == "__main__":
    main()
