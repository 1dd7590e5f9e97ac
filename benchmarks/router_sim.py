"""Compare the router with every fixed way to decode, and with a clairvoyant policy, in simulated loads.

    python benchmarks/router_sim.py      # writes benchmarks/results/router_sim.json and .png

Steps take what was measured on a GPU (decode_speed.json and one_forward_steps.json in benchmarks/results), and emit
what they would of recorded answers: nano's, with what it drafted behind each of their tokens (`record_drafts.py`).
Everything but the forwards is real. The clairvoyant policy is asked before every step, and knows what each answer
yields on average in each way; it does not know where drafts are wrong, nor think of the steps to come.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

import report  # noqa: E402
from pinned_windows import has_graphs  # noqa: E402
from router_simulation import (  # noqa: E402
    BUDGETS,
    DRAFTS,
    IN_ONE_FORWARD,
    ONE_BY_ONE,
    WIDTHS,
    Simulation,
    curve,
    measured,
)
from simulated_loads import QUALITIES, Load, loads, texts_of  # noqa: E402

from dlm_serve.decoding import ModeSettings, name_of  # noqa: E402
from dlm_serve.routing.costs import CostTable  # noqa: E402
from dlm_serve.routing.prefills import PrefillInterval  # noqa: E402
from dlm_serve.scheduling.graph_shapes import MOST_SPECULATED  # noqa: E402

WAYS = (*DRAFTS, *IN_ONE_FORWARD)
SEEDS = (5, 6, 7)
"""What `auto` finds out, and when, differs from run to run."""
CLIENTS: dict[str, Any] = {"prefill_ms": 6.0, "prefill_interval": PrefillInterval(2, 4), "promptness": 0.5}
"""Prefills as an H200 takes for a few short prompts in one CUDA graph, as often as servers make them by default, of
clients that take a step or two to ask again.
"""


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


@dataclass
class Window:
    """What was counted over some steps."""

    tokens: int = 0
    ms: float = 0.0
    ways: Counter[str] = field(default_factory=Counter)
    """Steps of each way, of all requests together."""

    @property
    def tokens_per_s(self) -> float:
        """Return the tokens per second of all requests together."""
        return 1000 * self.tokens / self.ms

    def add(self, simulation: Simulation, tokens: int, ms: float) -> None:
        """Add what `simulation` has just done."""
        self.tokens += tokens
        self.ms += ms
        self.ways.update(name_of(request.state.current.choice) for request in simulation.requests)

    def shares(self) -> dict[str, float]:
        """Return the part of each way, if it is more than a hundredth."""
        total = self.ways.total()
        return {way: round(steps / total, 2) for way, steps in self.ways.most_common() if steps > total / 100}


def run(simulation: Simulation, load: Load) -> Window:
    """Return what was counted once the load had run in."""
    texts, window, seconds = load.texts(), Window(), 0.0
    while not load.is_over(seconds):
        simulation.keep(load.wanted(seconds), texts.__next__)
        tokens, ms = simulation.step()
        if load.is_counted(seconds):
            window.add(simulation, tokens, ms)
        seconds += ms / 1000
    return window


def auto(card: CostTable, seed: int) -> Simulation:
    """Return a server with the router that it has by default."""
    return Simulation(card, measured(drafts=WAYS), drafts=WAYS, seed=seed, **CLIENTS)


def compare(card: CostTable, load: Load) -> dict[str, Any]:
    """Return the tokens per second of each, their ratios, and what `auto` chose."""
    found = {
        name_of(way.choice): run(Simulation(card, settings=way, **CLIENTS), load).tokens_per_s
        for way in (ONE_BY_ONE, *WAYS)
        if has_graphs(way.budget, load.most)
    }
    best = max(found, key=found.__getitem__)
    runs = [run(auto(card, seed), load) for seed in SEEDS]
    speeds = [each.tokens_per_s for each in runs]
    clairvoyant = run(Simulation.clairvoyant(card, WAYS, **CLIENTS), load).tokens_per_s
    mean = float(np.mean(speeds))
    return {
        **{way: round(speed, 1) for way, speed in found.items()},
        "auto": round(mean, 1),
        "clairvoyant": round(clairvoyant, 1),
        "auto / best fixed": round(mean / found[best], 3),
        "auto / clairvoyant": round(mean / clairvoyant, 3),
        "runs of auto / best fixed": [round(speed / found[best], 3) for speed in speeds],
        "best fixed": best,
        "ways of auto": [each.shares() for each in runs],
    }


def load_steps(card: CostTable, quality: str) -> dict[str, float]:
    """Return auto, on average over its runs, over the fastest of all others, from 50 steps behind each change on."""
    ways: dict[str, ModeSettings] = {name_of(way.choice): way for way in (ONE_BY_ONE, *WAYS)}
    others = {name: Simulation(card, settings=way, **CLIENTS) for name, way in ways.items()}
    others["clairvoyant"] = Simulation.clairvoyant(card, WAYS, **CLIENTS)
    runs = [auto(card, seed) for seed in SEEDS]
    ratios = {}
    for number, concurrency in enumerate((1, 64, 1), start=1):
        num_steps = 6000 if concurrency == 1 else 600
        fastest = max(
            behind_a_change(simulation, quality, concurrency, num_steps)
            for name, simulation in others.items()
            if name not in ways or has_graphs(ways[name].budget, concurrency)
        )
        speeds = [behind_a_change(simulation, quality, concurrency, num_steps) for simulation in runs]
        ratios[f"{number}: {concurrency} requests"] = round(float(np.mean(speeds)) / fastest, 3)
    return ratios


def behind_a_change(simulation: Simulation, quality: str, concurrency: int, num_steps: int) -> float:
    """Return the tokens per second of so many steps, 50 steps behind a change to so many requests."""
    texts, window = itertools.cycle(texts_of(quality)), Window()
    for step in range(50 + num_steps):
        simulation.keep(concurrency, texts.__next__)
        tokens, ms = simulation.step()
        if step >= 50:
            window.add(simulation, tokens, ms)
    return window.tokens_per_s


def run_for(simulation: Simulation, quality: str, concurrency: int, seconds: float) -> float:
    """Return the tokens per second of so many seconds, with answers of a quality of drafts."""
    texts, window = itertools.cycle(texts_of(quality)), Window()
    while window.ms < 1000 * seconds:
        simulation.keep(concurrency, texts.__next__)
        window.add(simulation, *simulation.step())
    return window.tokens_per_s


def behind_new_weights(card: CostTable, before: str, after: str, concurrency: int) -> float:
    """Return auto over the best fixed way in 15 seconds behind new weights, whose drafts are of another quality.

    A crowd comes first, for two seconds, as in `router.py`.
    """
    ways = [way for way in WAYS if has_graphs(way.budget, concurrency)]
    best = max(run_for(Simulation(card, settings=way, **CLIENTS), after, concurrency, 15) for way in ways)
    ratios = []
    for seed in SEEDS:
        simulation = auto(card, seed)
        assert simulation.router is not None
        for number in (128, 32, 8, 1):
            run_for(simulation, before, number, 5)
        simulation.router.start_anew()
        run_for(simulation, after, 128, 2)
        ratios.append(run_for(simulation, after, concurrency, 15) / best)
    return round(float(np.mean(ratios)), 3)


def acceptance_length(quality: str) -> float:
    """Return the tokens that a verification of a block of 32 emits."""
    texts = texts_of(quality)
    forwards = sum(text.length / text.tokens_per_forward(DRAFTS[-1]) for text in texts)
    return round(2 * sum(text.length for text in texts) / forwards, 1)


def main() -> None:
    """Print a line for each load; write figures and plot."""
    from router_sim_plot import draw

    card, results = measured_card(), {}
    for name, load in loads().items():
        results[name] = compare(card, load)
        sys.stdout.write(f"{name:28} {results[name]}\n")
        sys.stdout.flush()
    steps = {quality: load_steps(card, quality) for quality in QUALITIES}
    sys.stdout.write(f"auto over the fastest behind changes of the load: {steps}\n")
    changes = {
        f"{before} to {after}, {concurrency}": behind_new_weights(card, before, after, concurrency)
        for before, after in itertools.pairwise(QUALITIES)
        for concurrency in (1, 2)
    }
    sys.stdout.write(f"auto over the best fixed way behind new weights: {changes}\n")
    figures = {
        "acceptance length": {quality: acceptance_length(quality) for quality in QUALITIES},
        "loads": results,
        "load steps, auto / fastest of all others": steps,
        "new weights, auto / best fixed": changes,
    }
    report.write("router_sim", figures, "numpy")
    draw(results, report.RESULTS / "router_sim.png")


if __name__ == "__main__":
    main()
