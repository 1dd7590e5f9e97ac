"""Check token choice on a GPU against its reference, then time it against memory bandwidth and against itself.

    python benchmarks/sample_token.py            # prints a table, writes benchmarks/results/sample_token.json
    python benchmarks/sample_token.py --tune     # prints times under other launch constants instead

Nothing is timed unless all outputs are right.
"""

from __future__ import annotations

import argparse
import math
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "kernels"))

import report
import timing
from dlm_kernels.sample_token import Sampling, reference, sample_token
from dlm_kernels.sample_token import triton as launch

VOCAB_SIZE, MASK = 131072, 100
ROWS = (1, 32, 256)
WHOLE = 1 << 30
WAYS = {
    "greedy": None,
    "T 0.7": (0.7, WHOLE, 1.0, 0.0),
    "T 0.7, top-p 0.9": (0.7, WHOLE, 0.9, 0.0),
    "T 0.7, top-p 0.9, top-k 50": (0.7, 50, 0.9, 0.0),
    "T 0.7, top-k 50": (0.7, 50, 1.0, 0.0),
    "T 0.7, min-p 0.05": (0.7, WHOLE, 1.0, 0.05),
}
"""Temperature, top-k, top-p and min-p."""
LOGITS = {"normal": (3.0, 0.0), "peaked": (3.0, 12.0), "flat": (0.5, 0.0)}
"""The deviation of normal logits, and by how much five of each row are raised."""
TUNED: dict[str, dict[str, tuple[int, ...]]] = {
    "T 0.7": {"STRETCH": (2048, 4096, 8192), "SAMPLED_WARPS": (2, 4, 8)},
    "T 0.7, top-p 0.9": {"READ_GROUPS": (64, 128, 256), "DRAWN_GROUPS": (32, 64), "FILTER_WARPS": (4, 8, 16)},
}
"""The launch constants that matter for a way, with the values to try."""


def random_logits(num_rows: int, kind: str) -> torch.Tensor:
    deviation, raised = LOGITS[kind]
    logits = torch.randn(num_rows, VOCAB_SIZE, device="cuda") * deviation
    if raised:
        ids = torch.randint(VOCAB_SIZE, (num_rows, 5), device="cuda")
        logits.scatter_add_(1, ids, torch.rand(num_rows, 5, device="cuda") + raised)
    return logits.bfloat16()


def sampling_of(way: tuple[float, int, float, float] | None, num_rows: int) -> Sampling | None:
    """Return the sampling of `num_rows` requests of one token each; None if greedy."""
    if way is None:
        return None
    temperature, top_k, top_p, min_p = way
    ones = torch.ones(num_rows, device="cuda")
    seed = torch.arange(num_rows, device="cuda")
    return Sampling(ones * temperature, (ones * top_k).int(), ones * top_p, ones * min_p, seed)


def is_right(num_rows: int, kind: str, way: str) -> bool:
    """Return whether ids match the reference and the rest is within the float32 rounding of sums over a row.

    Where two noisy scores are within 1e-4 of each other, or a token is within 1e-4 of the edge of the nucleus, either
    of them is right: float32 tells them apart no better. Of a thousand rows that is less than one.
    """
    logits = random_logits(num_rows, kind)
    bound = torch.finfo(torch.float32).eps * (math.log2(VOCAB_SIZE) + 2 * float(logits.abs().max()) + 4)
    positions, sampling = torch.arange(num_rows, device="cuda"), sampling_of(WAYS[way], num_rows)
    own = reference.sample_token(logits, positions, sampling, exclude_id=MASK, with_second=True)
    ids, confidence, entropy, second_ids = sample_token(logits, positions, sampling, exclude_id=MASK, with_second=True)
    same = (ids == own[0]) & (second_ids == own[3])
    close = ((confidence - own[1]).abs() <= 2 * bound * own[1]) & ((entropy - own[2]).abs() <= 2 * bound * own[2])
    num_different, num_far = int((~same).sum()), int((same & ~close).sum())
    if num_different or num_far:
        print(f"{num_rows:5} {kind} rows, {way}: {num_different} tokens, {num_far} probabilities differ")
    return num_different <= 2 * (way != "greedy") and not num_far


def times(num_rows: int, kind: str, *ways: str, with_second: bool = False) -> dict[str, float]:
    """Return microseconds for rows that are in no cache, with the second choice or without."""
    batches = [random_logits(num_rows, kind) for _ in range(max(2, min(64, 4096 // num_rows)))]
    positions, us = torch.arange(num_rows, device="cuda"), {}
    for way in ways:
        sampling = sampling_of(WAYS[way], num_rows)
        choose = partial(sample_token, positions=positions, sampling=sampling, exclude_id=MASK, with_second=with_second)
        us[way] = timing.median_us([partial(choose, x) for x in batches])
    return us


def measure() -> None:
    bandwidth, found = timing.copy_bandwidth(), dict[str, dict[str, Any]]()
    for kind, num_rows in product(LOGITS, ROWS):
        us, floor = times(num_rows, kind, *WAYS), num_rows * VOCAB_SIZE * 2 / bandwidth * 1e6
        two = times(num_rows, kind, *WAYS, with_second=True)
        row = {"us": us, "with_second_us": two, "floor_us": floor, "share": floor / us["greedy"]}
        found.setdefault(kind, {})[str(num_rows)] = row
        print(f"{num_rows:5} {kind} rows, greedy at {floor / us['greedy']:.0%} of the memory's speed:")
        print(
            *(f"        {way:28} {value:7.1f} us  {value / us['greedy']:5.2f}" for way, value in us.items()), sep="\n"
        )
        print(*(f"        {way:28} {value:7.1f} us with the second" for way, value in two.items()), sep="\n")
    figures = {"vocab_size": VOCAB_SIZE, "copy_bandwidth_bytes_per_s": bandwidth}
    normal = {"rows": found.pop("normal")}
    report.write("sample_token", {**figures, **normal, "other logits": found}, "torch", "triton")


def tune() -> None:
    for way, constants in TUNED.items():
        for values in product(*constants.values()):
            chosen = dict(zip(constants, values, strict=True))
            before = {name: getattr(launch, name) for name in chosen}
            vars(launch).update(chosen)
            us = [f"{kind} {times(256, kind, way)[way]:.1f} us" for kind in LOGITS]
            vars(launch).update(before)
            print(f"{way}, {chosen}: {', '.join(us)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tune", action="store_true", help="time other launch constants; writes nothing")
    is_tuning = parser.parse_args().tune
    torch.manual_seed(0)
    outcomes = [is_right(*case) for case in product((1, 7, 256), LOGITS, WAYS)]
    if not all(outcomes):
        raise SystemExit("the kernels are not right: nothing is timed")
    if is_tuning:
        tune()
    else:
        measure()


if __name__ == "__main__":
    main()
