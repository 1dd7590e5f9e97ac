"""Compare the router with every fixed way to decode, and with a policy that knows everything, in simulated loads.

    python benchmarks/router_sim.py      # writes benchmarks/results/router_sim.json and .png

Steps take what was measured on a GPU (benchmarks/results/decode_speed.json, one_forward.json). Drafts of each request
are right with a chance of its own, drawn for the acceptance lengths 26, 7 and 2.7, and for a mix of 26 and 2; in one
forward, with the chance that gives the tokens per forward that were measured. Clients ask one request after another, as
those of benchmarks/router.py do: prefills come between steps, and ends of answers show a step late. Everything but the
forwards is real. The policy that knows everything is asked before every step, and knows these chances.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

import report  # noqa: E402
from router_simulation import (  # noqa: E402
    ALL_CHOICES,
    BUDGETS,
    DRAFTS,
    ONE_BY_ONE,
    SPECULATIONS,
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

NUM_STEPS, WARM_UP = 1000, 200
AUTO, CLAIRVOYANT = "auto", "clairvoyant"
LENGTHS = (78, 97, 104, 108, 113, 136, 139)
"""Tokens of answers, as those of the tasks with long ones."""
CLOSED_LOOP: dict[str, Any] = {"prefill_ms": 14.0, "promptness": 0.4, "is_late": True}
"""Prefills as short prompts take them on an H200, of clients that take two or three steps to ask again."""
CONTEXT = 1024
"""Tokens at which steps were measured; 128 where they say so."""


def measured_card() -> CostTable:
    """Return the step times of the 8B shape with a draft adapter, between and beyond the points that were measured."""
    figures = json.loads((report.RESULTS / "decode_speed.json").read_text())["measured"]
    steps = json.loads((report.RESULTS / "one_forward.json").read_text())["cells"]["m2.25"]["steps"]

    def ms(name: str) -> float:
        return float(np.median(figures[name]))

    most = 127
    of_context = (ms("step ms, batch 127, 1024") - ms("step ms, batch 127, 128")) / (most * (CONTEXT - 128))

    def without_context(ms: float, rows: int, context: int = CONTEXT) -> float:
        return ms - of_context * rows * context

    shapes = ((1, 4), (1, 8), (1, 16), (1, 32), (8, 8), (8, 32), (32, 32))
    bare = {shape: ms("block step ms, batch {}, width {}, 1024".format(*shape)) for shape in shapes}
    adapter = float(np.median([steps[f"linear {width}"]["ms"] - bare[1, width] for width in WIDTHS]))
    blocks = {rows * width: without_context(ms + adapter, rows) for (rows, width), ms in bare.items()}
    blocks |= {budget: without_context(steps[f"one forward {budget}"]["ms"], 1) for budget in (96, 128)}
    decode = {rows: without_context(ms(f"dlm-serve step ms, batch {rows}, 1024"), rows) for rows in (1, 8)}
    decode[most] = without_context(ms("step ms, batch 127, 128"), most, 128)
    widths = sorted({*WIDTHS, *BUDGETS})
    rows = np.arange(257)
    by_token = curve(dict(sorted(blocks.items())), rows[-1] * widths[-1])
    of_blocks = np.stack([by_token[rows * width] for width in widths])
    for of_width, width in zip(of_blocks, widths, strict=True):
        if width > max(WIDTHS):
            of_width[MOST_SPECULATED // width + 1 :] = np.inf
    return CostTable(tuple(widths), curve(decode, rows[-1]), of_blocks, of_context, np.full(len(widths), of_context))


def chance_for(tokens: float, width: int = 32) -> float:
    """Return how likely drafts are right where blocks of `width` emit so many tokens on average."""
    return float(brentq(lambda chance: tokens_per_block(chance, width) - min(tokens, 0.999 * width), 1e-6, 1 - 1e-9))


@cache
def hazards_in_one_forward() -> dict[int, list[tuple[float, float]]]:
    """Return by budget how often drafts are wrong in turn, and in one forward, for each quality that was measured.

    The first forward of an answer has no draft, and emits one token.
    """
    found: dict[int, list[tuple[float, float]]] = {budget: [] for budget in BUDGETS}
    for cell in json.loads((report.RESULTS / "one_forward.json").read_text())["cells"].values():
        ways = cell["speed at 1"]
        in_turn = -math.log(chance_for(ways["linear 32"]["acceptance_length"]))
        for budget in BUDGETS:
            way = ways[f"one forward {budget}"]
            length = sum(way["tokens"].values()) / way["requests"]
            tokens = (length - 1) / (length / way["tokens_per_forward"] - 1)
            found[budget].append((in_turn, -math.log(chance_for(tokens, min(budget // 2, 32)))))
    return {budget: sorted(pairs) for budget, pairs in found.items()}


def chances_in_one_forward(chance: float) -> dict[int, float]:
    """Return by budget how likely drafts are right, where they are with `chance` in turn."""
    found = {}
    for budget, pairs in hazards_in_one_forward().items():
        in_turn, factors = zip(*((math.log(one), math.log(other / one)) for one, other in pairs), strict=True)
        log_hazard = math.log(-math.log(chance))
        found[budget] = math.exp(-math.exp(log_hazard + float(np.interp(log_hazard, in_turn, factors))))
    return found


def texts(*acceptance_lengths: float) -> Callable[[], Text]:
    """Return what makes answers with each of these acceptance lengths in turn."""
    random, number = np.random.default_rng(1), iter(range(10**9))
    chances = [chance_for(value) for value in acceptance_lengths]
    in_one_forward = [chances_in_one_forward(chance) for chance in chances]

    def make() -> Text:
        kind = next(number) % len(chances)
        return Text(chances[kind], int(random.choice(LENGTHS)), 32, in_one_forward[kind])

    return make


Load = Iterator[tuple[int, Callable[[], Text]]]
"""How many requests run in each step, and what new ones are like."""


def steady(concurrency: int, acceptance_lengths: tuple[float, ...]) -> Load:
    make = texts(*acceptance_lengths)
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
        yield 25, (lambda: replace(make(), length=4000)) if step == 0 else (lambda: replace(make(), length=24))


def run(simulation: Simulation, load: Load, warm_up: int = WARM_UP) -> float:
    """Return tokens per second after the first steps."""
    tokens = ms = 0.0
    for step, (concurrency, make) in enumerate(load):
        simulation.keep(concurrency, make)
        emitted, took = simulation.step()
        if step >= warm_up:
            tokens, ms = tokens + emitted, ms + took
    return 1000 * tokens / ms


def simulations(card: CostTable) -> dict[str, Simulation]:
    """Return a server for each way to decode, for the router and for the policy that knows everything."""
    fixed = {
        name_of(settings.choice): Simulation(card, settings=settings, **CLOSED_LOOP)
        for settings in (ONE_BY_ONE, *DRAFTS, *SPECULATIONS)
    }
    return {**fixed, **routed(card)}


def routed(card: CostTable) -> dict[str, Simulation]:
    """Return a server for the router and one for the policy that knows everything."""
    policy = measured(choices=ALL_CHOICES)
    return {
        AUTO: Simulation(card, policy, choices=ALL_CHOICES, **CLOSED_LOOP),
        CLAIRVOYANT: Simulation.clairvoyant(card, choices=ALL_CHOICES, **CLOSED_LOOP),
    }


def compare(card: CostTable, load: Callable[[], Load], most: int) -> dict[str, float]:
    """Return the tokens per second of each at up to `most` requests, and the ratios of `auto`."""
    speeds = {
        name: round(run(simulation, load()), 1)
        for name, simulation in simulations(card).items()
        if simulation.settings is None or (simulation.settings.budget or 0) * most <= MOST_SPECULATED
    }
    best = max(speed for name, speed in speeds.items() if name not in (AUTO, CLAIRVOYANT))
    ratios = {
        "auto / best fixed": round(speeds[AUTO] / best, 3),
        "auto / autoregressive": round(speeds[AUTO] / speeds["autoregressive"], 3),
        "auto / clairvoyant": round(speeds[AUTO] / speeds[CLAIRVOYANT], 3),
    }
    return {**speeds, **ratios}


def load_steps(card: CostTable, acceptance_length: float) -> dict[str, float]:
    """Return auto over the policy that knows everything, from 50 steps behind each change of the load on."""
    servers = routed(card)
    ratios = {}
    for number, concurrency in enumerate((1, 64, 1)):
        speeds = {}
        for name, simulation in servers.items():
            make = texts(acceptance_length)
            steps = ((concurrency, make) for _ in range(50 + (4000 if concurrency == 1 else 400)))
            speeds[name] = run(simulation, steps, warm_up=50)
        ratios[f"{number}: {concurrency} requests"] = round(speeds[AUTO] / speeds[CLAIRVOYANT], 3)
    return ratios


def draw(results: dict[str, dict[str, float]], path: Path) -> None:
    """Draw tokens per second over those of the policy that knows everything: a group for each load."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    axes = figure.subplots()
    names = [name for name in next(iter(results.values())) if "/ " not in name and name != CLAIRVOYANT]
    for number, name in enumerate(names):
        heights = [row.get(name, math.nan) / row[CLAIRVOYANT] for row in results.values()]
        at = np.arange(len(results)) + (number - len(names) / 2) * 0.085
        axes.bar(at, heights, width=0.08, label=name, color="black" if name == AUTO else None)
    axes.set_xticks(range(len(results)), results, rotation=45, ha="right", fontsize=8)
    axes.set(
        ylabel="tokens per second, over the policy that knows everything", title="Simulated loads on an H200, 8B shape"
    )
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.legend(fontsize=8, ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1.06))
    figure.savefig(path, dpi=130)


def main() -> None:
    """Print a line for each load; write figures and plot."""
    card = measured_card()
    loads: dict[str, tuple[int, Callable[[], Load]]] = {}
    for lengths in ((26.0,), (7.0,), (2.7,), (26.0, 2.0)):
        named = " and ".join(f"{length:g}" for length in lengths)
        for concurrency in (1, 8, 32, 128):
            loads[f"{concurrency} at {named}"] = concurrency, partial(steady, concurrency, lengths)
    loads["bursty at 7"] = 96, lambda: bursty(texts(7.0))
    loads["diurnal at 7"] = 128, lambda: diurnal(texts(7.0))
    loads["long beside short at 7"] = 25, lambda: long_beside_short(texts(7.0))
    results: dict[str, dict[str, float]] = {}
    steps: dict[str, dict[str, float]] = {}
    figures = {"loads": results, "load steps, auto / clairvoyant": steps}
    for length in (26.0, 7.0, 2.7):
        steps[f"acceptance {length:g}"] = load_steps(card, length)
    sys.stdout.write(f"auto over clairvoyant behind changes of the load: {steps}\n")
    for name, (most, load) in loads.items():
        results[name] = compare(card, load, most)
        sys.stdout.write(f"{name:24} {results[name]}\n")
        sys.stdout.flush()
        report.write("router_sim", figures, "numpy")
    draw(results, report.RESULTS / "router_sim.png")


if __name__ == "__main__":
    main()
