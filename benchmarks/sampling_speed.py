"""Measure what sampling adds to a step on a server that runs, of a model with autoregression and diffusion.

    python benchmarks/sampling_speed.py URL [--plain URL]     # writes benchmarks/results/sampling_speed.json

Blocks are compared with greedy ones; autoregressive steps with those of SGLang without dlm-serve, which samples the
same way. Prompts are random tokens, so that distributions are what the model makes of noise.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import report
from decode_speed import AUTOREGRESSIVE, fixed_schedule, step_ms
from serving import Server

NUCLEUS = {"temperature": 0.7, "top_p": 0.9}
WAYS: dict[str, dict[str, float]] = {
    "greedy": {},
    "T 0.7": {"temperature": 0.7},
    "T 0.7, top-p 0.9": NUCLEUS,
    "T 0.7, top-p 0.9, top-k 50": {**NUCLEUS, "top_k": 50},
}
BLOCKS = ((1, 32), (8, 8), (8, 32), (32, 8))
AUTOREGRESSIVE_BATCHES = (1, 32, 127)
REPEATS = 3
CONTEXT = 128


class RunningServer(Server):
    """A server that somebody else has started."""

    def __init__(self, url: str) -> None:
        self.url = url


def blocks(server: RunningServer) -> dict[str, dict[str, float]]:
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


def autoregressive(plain: RunningServer, ours: RunningServer) -> dict[str, dict[str, float]]:
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
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", metavar="URL", help="of a server that runs")
    parser.add_argument("--plain", metavar="URL", help="of one without dlm-serve")
    options = parser.parse_args()
    ours = RunningServer(options.url)
    figures: dict[str, Any] = {"blocks": blocks(ours)}
    if options.plain:
        figures["autoregressive"] = autoregressive(RunningServer(options.plain), ours)
    report.write("sampling_speed", figures, "sglang", "torch", "triton")


if __name__ == "__main__":
    main()
