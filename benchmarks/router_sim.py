"""Compare the router with every fixed way to decode, and with a policy that knows everything, in simulated loads.

    python benchmarks/router_sim.py      # writes benchmarks/results/router_sim.json and .png

Steps take what was measured on a GPU (decode_speed.json and one_forward_steps.json in benchmarks/results); drafts of
each request are right with a chance of its own, drawn for the acceptance lengths 24, 7 and 3, and for a mix of 24 and
2. Everything but the forwards is real. The policy that knows everything is asked before every step, and knows these
chances.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

import report  # noqa: E402
from router_simulation import (  # noqa: E402
    BUDGETS,
    DRAFTS,
    IN_ONE_FORWARD,
    ONE_BY_ONE,
    WIDTHS,
    Simulation,
    Text,
    curve,
    measured,
    tokens_per_block,
)
from scipy.optimize import brentq  # noqa: E402

from dlm_serve.decoding import name_of  # noqa: E402
from dlm_serve.routing.costs import CostTable  # noqa: E402
from dlm_serve.scheduling.graph_shapes import MOST_SPECULATED  # noqa: E402

NUM_STEPS = 4000
WAYS = (*DRAFTS, *IN_ONE_FORWARD)
AUTO, CLAIRVOYANT = "auto", "clairvoyant"
INTERRUPTED = {"prefill_ms": 12.0, "promptness": 0.5}
"""Prefills as an H200 takes for a few short prompts, of clients that take a step or two to ask again."""


def measured_card() -> CostTable:
    """Return the step times of the 8B shape, between and beyond the points that were measured, without context."""
    figures = json.loads((report.RESULTS / "decode_speed.json").read_text())["measured"]
    in_one = json.loads((report.RESULTS / "one_forward_steps.json").read_text())["cells"]["server"]["steps"]

    def ms(name: str) -> float:
        return float(np.median(figures[name]))

    blocks = {
        rows * width: ms(f"block step ms, batch {rows}, width {width}, 1024")
        for rows, width in ((1, 4), (1, 8), (1, 16), (1, 32), (8, 8), (8, 32), (32, 32))
    }
    blocks |= {budget: in_one[f"one forward {budget}"]["ms"] for budget in (96, 128)}
    decode = {1: ms("dlm-serve step ms, batch 1, 1024"), 8: ms("dlm-serve step ms, batch 8, 1024")}
    decode[127] = ms("step ms, batch 127, 128")
    widths, rows = sorted({*WIDTHS, *BUDGETS}), np.arange(257)
    by_token = curve(dict(sorted(blocks.items())), 256 * max(widths))
    block_ms = np.stack([by_token[rows * width] for width in widths])
    for width, times in zip(widths, block_ms, strict=True):
        if width not in WIDTHS:
            times[MOST_SPECULATED // width + 1 :] = np.inf
    return CostTable(tuple(widths), curve(decode, 256), block_ms, 0.0, np.zeros(len(widths)))


def chance_for(acceptance_length: float) -> float:
    """Return how likely drafts are right where blocks of 32 emit so many tokens on average."""
    return float(brentq(lambda chance: tokens_per_block(chance, 32) - acceptance_length, 1e-6, 1 - 1e-9))


def texts(*acceptance_lengths: float, length: int = 256) -> Callable[[], Text]:
    """Return what makes answers of about `length` tokens with each of these acceptance lengths in turn."""
    random, number = np.random.default_rng(1), iter(range(10**9))
    chances = [chance_for(value) for value in acceptance_lengths]
    return lambda: Text(chances[next(number) % len(chances)], max(8, int(random.exponential(length))))


Load = Iterator[tuple[int, Callable[[], Text]]]
"""How many requests run in each step, and what new ones are like."""


def steady(concurrency: int, make: Callable[[], Text]) -> Load:
    for _ in range(NUM_STEPS):
        yield concurrency, make


def bursty(make: Callable[[], Text]) -> Load:
    for step in range(NUM_STEPS):
        yield (96 if step // 300 % 2 else 4), make


def diurnal(make: Callable[[], Text]) -> Load:
    for step in range(NUM_STEPS):
        yield round(64.5 - 63.5 * math.cos(2 * math.pi * step / NUM_STEPS * 2)), make


def long_beside_short(make: Callable[[], Text]) -> Load:
    """One request of 4,000 tokens after the other, beside 24 that are short."""
    for step in range(NUM_STEPS):
        yield 25, (lambda: Text(make().chance, 4000)) if step == 0 else (lambda: Text(make().chance, 24))


def run(simulation: Simulation, load: Load, warm_up: int = 500) -> float:
    """Return tokens per second after the first steps."""
    tokens = ms = 0.0
    for step, (concurrency, make) in enumerate(load):
        simulation.keep(concurrency, make)
        emitted, took = simulation.step()
        if step >= warm_up:
            tokens, ms = tokens + emitted, ms + took
    return 1000 * tokens / ms


def simulations(card: CostTable, **clients: Any) -> dict[str, Simulation]:
    """Return a server for each way to decode, for the router and for the policy that knows everything."""
    fixed = {name_of(way.choice): Simulation(card, settings=way, **clients) for way in (ONE_BY_ONE, *WAYS)}
    return {
        **fixed,
        AUTO: Simulation(card, measured(drafts=WAYS), drafts=WAYS, **clients),
        CLAIRVOYANT: Simulation.clairvoyant(card, WAYS, **clients),
    }


def compare(card: CostTable, load: Callable[[], Load], **clients: Any) -> dict[str, float]:
    """Return the tokens per second of each, and two ratios."""
    speeds = {name: round(run(simulation, load()), 1) for name, simulation in simulations(card, **clients).items()}
    best = max(speed for name, speed in speeds.items() if name not in (AUTO, CLAIRVOYANT))
    ratios = {
        "auto / best fixed": round(speeds[AUTO] / best, 3),
        "auto / clairvoyant": round(speeds[AUTO] / speeds[CLAIRVOYANT], 3),
    }
    return {**speeds, **ratios}


def load_steps(card: CostTable, acceptance_length: float) -> dict[str, float]:
    """Return auto over the policy that knows everything, from 50 steps behind each change of the load on."""
    pair = (Simulation(card, measured(drafts=WAYS), drafts=WAYS), Simulation.clairvoyant(card, WAYS))
    ratios = {}
    for number, concurrency in enumerate((1, 64, 1)):
        speeds = []
        for simulation in pair:
            make = texts(acceptance_length)
            steps = ((concurrency, make) for _ in range(50 + (6000 if concurrency == 1 else 600)))
            speeds.append(run(simulation, steps, warm_up=50))
        ratios[f"{number}: {concurrency} requests"] = round(speeds[0] / speeds[1], 3)
    return ratios


def draw(results: dict[str, dict[str, float]], path: Path) -> None:
    """Draw tokens per second over those of the policy that knows everything: a group for each load."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    axes = figure.subplots()
    names = [name for name in next(iter(results.values())) if "/ " not in name and name != CLAIRVOYANT]
    for number, name in enumerate(names):
        heights = [row[name] / row[CLAIRVOYANT] for row in results.values()]
        at = np.arange(len(results)) + (number - len(names) / 2) * 0.13
        axes.bar(at, heights, width=0.12, label=name, color="black" if name == AUTO else None)
    axes.set_xticks(range(len(results)), results, rotation=45, ha="right", fontsize=8)
    axes.set(
        ylabel="tokens per second, over the policy that knows everything", title="Simulated loads on an H200, 8B shape"
    )
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.legend(fontsize=8, ncols=6, loc="upper center", bbox_to_anchor=(0.5, 1.18))
    figure.savefig(path, dpi=130)


def main() -> None:
    """Print a line for each load; write figures and plot."""
    card = measured_card()
    loads: dict[str, Callable[[], Load]] = {}
    for lengths in ((24.0,), (7.0,), (3.0,), (24.0, 2.0)):
        named = " and ".join(f"{length:g}" for length in lengths)
        for concurrency in (1, 8, 32, 128):
            loads[f"{concurrency} at {named}"] = lambda n=concurrency, a=lengths: steady(n, texts(*a))  # type: ignore[misc]
    loads["bursty at 7"] = lambda: bursty(texts(7.0))
    loads["diurnal at 7"] = lambda: diurnal(texts(7.0))
    loads["long beside short at 7"] = lambda: long_beside_short(texts(7.0))
    results = {}
    for name, load in loads.items():
        results[name] = compare(card, load)
        sys.stdout.write(f"{name:24} {results[name]}\n")
        sys.stdout.flush()
    for concurrency in (16, 64, 128):
        name = f"{concurrency} at 7, short answers"
        results[name] = compare(card, lambda n=concurrency: steady(n, texts(7.0, length=57)), **INTERRUPTED)  # type: ignore[misc]
        sys.stdout.write(f"{name:24} {results[name]}\n")
    steps = {f"acceptance {length:g}": load_steps(card, length) for length in (24.0, 7.0, 3.0)}
    sys.stdout.write(f"auto over clairvoyant behind changes of the load: {steps}\n")
    report.write("router_sim", {"loads": results, "load steps, auto / clairvoyant": steps}, "numpy")
    draw(results, report.RESULTS / "router_sim.png")


if __name__ == "__main__":
    main()
