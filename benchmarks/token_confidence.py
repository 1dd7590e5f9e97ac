"""Check token confidence on a GPU against its reference, then time it against memory bandwidth.

    python benchmarks/token_confidence.py     # prints a table, writes benchmarks/results/token_confidence.json

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
from dlm_kernels.token_confidence import reference, token_confidence

VOCAB_SIZE, MASK = 131072, 100
ROWS = (1, 8, 32, 64, 256, 1024)


def random_logits(num_rows: int) -> torch.Tensor:
    return (torch.randn(num_rows, VOCAB_SIZE, device="cuda") * 3).bfloat16()


def is_right(logits: torch.Tensor) -> bool:
    """Return whether ids match the reference and the rest is within the float32 rounding of sums over a row."""
    bound = torch.finfo(torch.float32).eps * (math.log2(VOCAB_SIZE) + float(logits.abs().max()) + 4)
    for exclude_from_denominator in (False, True):
        own = reference.token_confidence(logits, MASK, exclude_from_denominator)
        ids, confidence, entropy = token_confidence(logits, MASK, exclude_from_denominator)
        close = ((confidence - own[1]).abs() <= 2 * bound * own[1]) & ((entropy - own[2]).abs() <= 2 * bound * own[2])
        if not (torch.equal(ids, own[0]) and bool(close.all())):
            return False
    return True


def main() -> None:
    torch.manual_seed(0)
    if not all(is_right(random_logits(num_rows)) for num_rows in (1, 7, 256)):
        raise SystemExit("the kernels are not right: nothing is timed")
    bandwidth, rows = timing.copy_bandwidth(), {}
    for num_rows in ROWS:
        batches = [random_logits(num_rows) for _ in range(max(2, min(64, 4096 // num_rows)))]
        us = timing.median_us([partial(token_confidence, logits, MASK, False) for logits in batches])
        floor = num_rows * VOCAB_SIZE * 2 / bandwidth * 1e6
        rows[str(num_rows)] = {"us": us, "floor_us": floor, "share": floor / us}
        print(f"{num_rows:5} rows: {us:7.1f} us, floor {floor:6.1f}, {floor / us:.0%} of the memory's speed")
    figures = {"vocab_size": VOCAB_SIZE, "copy_bandwidth_bytes_per_s": bandwidth, "rows": rows}
    report.write("token_confidence", figures, "torch", "triton")


if __name__ == "__main__":
    main()
