"""Measure what sampling adds to a step on a GPU, at the shape of Nemotron-Labs-Diffusion-8B.

    python benchmarks/sampling_speed.py     # prints a table, writes benchmarks/results/sampling_speed.json

Blocks are compared with greedy ones; autoregressive steps with those of SGLang without dlm-serve, which samples the
same way, on a server beside it. Weights are random: the distributions are flat, which is the worst case for filters.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from functools import partial
from pathlib import Path

import report
from decode_speed import AUTOREGRESSIVE, PLAIN, fixed_schedule, step_ms, write_model
from serving import Server

NUCLEUS = {"temperature": 0.7, "top_p": 0.9}
WAYS: dict[str, dict[str, float]] = {
    "greedy": {},
    "T 0.7": {"temperature": 0.7},
    "T 0.7, top-p 0.9": NUCLEUS,
    "T 0.7, top-p 0.9, top-k 50": {**NUCLEUS, "top_k": 50},
}
FLAGS = (
    *("--load-format", "dummy", "--skip-server-warmup", "--max-total-tokens", "60000", "--mem-fraction-static", "0.4"),
    *("--max-running-requests", "128", "--cuda-graph-bs-decode", "1", "8", "32", "128"),
)
BLOCKS = ((1, 32), (8, 8), (8, 32), (32, 8))
AUTOREGRESSIVE_BATCHES = (1, 32, 127)
REPEATS = 3
CONTEXT = 128


def blocks(server: Server) -> dict[str, dict[str, float]]:
    """Return the milliseconds of a block step in each way, with its ratio to a greedy one."""
    found = {}
    for batch, width in BLOCKS:
        measure = partial(step_ms, server, batch, CONTEXT, fixed_schedule(width))
        measure()
        rounds = [{name: measure(**way) for name, way in WAYS.items()} for _ in range(REPEATS)]
        ms = {name: statistics.median(one[name] for one in rounds) for name in WAYS}
        found[f"batch {batch}, width {width}"] = ms
        print(
            f"batch {batch:3}, width {width:2}: "
            + ", ".join(f"{n} {v:.2f} ms ({v / ms['greedy']:.3f})" for n, v in ms.items())
        )
    return found


def autoregressive(plain: Server, ours: Server) -> dict[str, dict[str, float]]:
    """Return the milliseconds of a step of both servers, sampled by top-p, and the speed of ours over the other."""
    found = {}
    for batch in AUTOREGRESSIVE_BATCHES:
        both = {
            "plain": partial(step_ms, plain, batch, CONTEXT, {}, **NUCLEUS),
            "ours": partial(step_ms, ours, batch, CONTEXT, AUTOREGRESSIVE, **NUCLEUS),
        }
        for measure in both.values():
            measure()
        rounds = [{name: measure() for name, measure in both.items()} for _ in range(REPEATS)]
        ms = {name: statistics.median(one[name] for one in rounds) for name in both}
        found[f"batch {batch}"] = {**ms, "ratio": ms["plain"] / ms["ours"]}
        print(f"autoregressive, batch {batch:3}: {found[f'batch {batch}']}")
    return found


def main() -> None:
    """Print a line for each shape, and write the figures."""
    with tempfile.TemporaryDirectory() as temporary:
        logs = Path(os.environ.get("OUT", temporary))
        folder = Path(temporary)
        models = write_model(folder / "plain", PLAIN), write_model(folder / "ours", {})
        # Both start at the same time: launched here, waited for below.
        servers = (
            Server.launch(models[0], *FLAGS, log=logs / "plain.log", env={"SGLANG_PLUGINS": "none"}),
            Server.launch(models[1], *FLAGS, log=logs / "ours.log"),
        )
        with servers[0] as plain, servers[1] as ours:
            figures = {"blocks": blocks(ours), "autoregressive": autoregressive(plain, ours)}
    report.write("sampling_speed", figures, "sglang", "torch", "triton")


if __name__ == "__main__":
    main()
