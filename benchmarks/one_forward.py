"""Measure one-forward self-speculation on a server that runs, against autoregression and drafting in turn.

    python benchmarks/one_forward.py URL [--checkpoints DIR ...] [--parts answers steps speed] [--out NAME]

- `answers`: how many greedy answers are the autoregressive ones; the others part at near-ties, whose width is printed;
- `steps`: milliseconds of a forward by its budget, at one request, with its ratio to an autoregressive step;
- `speed`: output tokens per second of clients that send one request after another, by way and concurrency, with
  tokens per forward.

The checkpoints, if given, are loaded into the server one after another: the same model with drafts of another quality.
Beside the figures it draws tokens per second over concurrency, a panel for each checkpoint.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import agreement
import report
from decode_speed import AUTOREGRESSIVE, step_ms
from matplotlib.figure import Figure
from prompts import PROMPTS
from sampling_speed import RunningServer

from dlm_serve.evaluation.load import Cell, Clients
from dlm_serve.evaluation.load_plot import AUTO

BUDGETS = (16, 32, 64, 96, 128)
WIDTHS = (4, 8, 16, 32)
CONCURRENCIES = (1, 2, 4, 8)
REPEATS = 3
CONTEXT = 1024


def linear(width: int) -> dict[str, Any]:
    """Return the options that draft blocks of `width` and verify them in turn."""
    return {"mode": "self_speculation", "speculation": "linear", "block_length": width}


def one_forward(budget: int) -> dict[str, Any]:
    """Return the options that do both in forwards of `budget` tokens."""
    return {"mode": "self_speculation", "speculation": "one_forward", "budget": budget}


WAYS: dict[str, dict[str, Any]] = {
    "autoregressive": AUTOREGRESSIVE,
    **{f"linear {width}": linear(width) for width in WIDTHS},
    **{f"one forward {budget}": one_forward(budget) for budget in BUDGETS},
}


def answers(server: RunningServer, prompts: list[list[int]]) -> dict[str, Any]:
    """Return how many answers are the autoregressive ones, and by how much the tokens differ at which others part."""
    exact = agreement.answers(server, prompts, AUTOREGRESSIVE, 16)
    found = {}
    for name in ("linear 32", "one forward 32", "one forward 64"):
        gaps = agreement.gaps(server, prompts, exact, agreement.answers(server, prompts, WAYS[name], 4))
        found[name] = {"answers": len(exact), "different": len(gaps), "gaps_nats": sorted(gaps)}
        _print(
            f"{name:16} {len(gaps)} of {len(exact)} differ, by up to {max(gaps, default=0):.3f} nats where they part"
        )
    return found


def steps(server: RunningServer) -> dict[str, dict[str, float]]:
    """Return the milliseconds of a forward in each way, with its ratio to an autoregressive step."""
    measures = {name: partial(step_ms, server, 1, CONTEXT, way) for name, way in WAYS.items()}
    for measure in measures.values():
        measure()  # compiles kernels
    rounds = [{name: measure() for name, measure in measures.items()} for _ in range(REPEATS)]
    ms = {name: statistics.median(one[name] for one in rounds) for name in WAYS}
    found = {name: {"ms": ms[name], "ratio": ms[name] / ms["autoregressive"]} for name in WAYS}
    for name, figures in found.items():
        _print(f"{name:16} {figures['ms']:.2f} ms, {figures['ratio']:.3f}")
    return found


def speeds(clients: Clients, concurrency: int, seconds: float, warm_up: float) -> dict[str, dict[str, Any]]:
    """Return the figures of each way at one concurrency, with its speed over that of autoregression."""
    found = {}
    for name, way in {**WAYS, AUTO: {}}.items():
        cell = Cell()
        clients.measure(cell, way, concurrency, seconds, warm_up)
        found[name] = cell.summary()
    base = found["autoregressive"]["tokens_per_s"]
    for name, figures in found.items():
        figures["over_autoregressive"] = round(figures["tokens_per_s"] / base, 3)
        _print(
            f"{concurrency:3d} {name:16} {figures['tokens_per_s']:9.1f} tok/s ({figures['over_autoregressive']:.2f}), "
            f"{figures['tokens_per_forward']:.2f} tokens a forward, accepts {figures['acceptance_length']}"
        )
    best = {kind: found[best_of(found, kind)]["tokens_per_s"] for kind in KINDS}
    best_fixed = max(figures["tokens_per_s"] for name, figures in found.items() if name != AUTO)
    _print(
        f"{concurrency:3d} one forward over linear: {best['one forward'] / best['linear']:.3f}, "
        f"auto over the best: {found[AUTO]['tokens_per_s'] / best_fixed:.3f} {found[AUTO]['tokens']}"
    )
    return found


KINDS = ("linear", "one forward")


def best_of(found: Mapping[str, Mapping[str, Any]], kind: str) -> str:
    """Return the fastest of the ways of a kind at one concurrency."""
    return max((name for name in found if name.startswith(kind)), key=lambda name: found[name]["tokens_per_s"])


def draw(cells: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw tokens per second against concurrency, a panel for each checkpoint whose speed is among `cells`."""
    rows = {
        name: {concurrency: found[f"speed at {concurrency}"] for concurrency in _measured(found)}
        for name, found in cells.items()
    }
    panels = [row for row in rows.values() if row]
    if not panels:
        return
    figure = Figure(figsize=(4.2 * len(panels), 4.2), layout="constrained")
    for axes, row in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in ("autoregressive", *KINDS, AUTO):
            style: dict[str, Any] = {"color": "black", "linewidth": 2.5} if name == AUTO else {"linewidth": 1.5}
            speeds = [found[best_of(found, name)]["tokens_per_s"] for found in row.values()]
            axes.plot(list(row), speeds, "o-", label=f"best {name}" if name in KINDS else name, **style)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(list(row), map(str, row))
        axes.yaxis.set_major_formatter("{x:.0f}")
        accepted = next(iter(row.values()))[f"linear {max(WIDTHS)}"]["acceptance_length"]
        axes.set(xlabel="requests at once", title=f"blocks of {max(WIDTHS)} accept {accepted:.1f} tokens")
    figure.axes[0].set_ylabel("output tokens per second")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=130)


def _measured(found: Mapping[str, Any]) -> list[int]:
    return sorted(int(part.removeprefix("speed at ")) for part in found if part.startswith("speed at "))


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _loaded(clients: Clients, checkpoints: list[str]) -> Iterator[str]:
    """Yield the name of each checkpoint once the server has it."""
    for checkpoint in checkpoints:
        if checkpoint:
            clients.load(checkpoint)
        _print(f"== {checkpoint or 'as it runs'}")
        yield Path(checkpoint).name or "server"


def main() -> None:
    """Print a line for each figure, and write all of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", metavar="URL")
    parser.add_argument("--checkpoints", nargs="+", metavar="DIR", default=[""], help="the server's own, without")
    parser.add_argument(
        "--parts", nargs="+", choices=("answers", "steps", "speed"), default=("answers", "steps", "speed")
    )
    parser.add_argument("--prompts", choices=PROMPTS, default="long")
    parser.add_argument("--concurrency", default=",".join(map(str, CONCURRENCIES)))
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--warm-up", type=float, default=0.4, help="seconds before each measurement")
    parser.add_argument("--out", default="one_forward", help="name of the file in benchmarks/results")
    options = parser.parse_args()
    server, clients = RunningServer(options.url), Clients(options.url, PROMPTS[options.prompts]())
    figures: dict[str, Any] = {}
    for name in _loaded(clients, options.checkpoints):
        found = figures[name] = {}
        if "answers" in options.parts:
            found["answers"] = answers(server, PROMPTS["tasks"]()[:200])
        if "steps" in options.parts:
            found["steps"] = steps(server)
        if "speed" in options.parts:
            for concurrency in map(int, options.concurrency.split(",")):
                found[f"speed at {concurrency}"] = speeds(clients, concurrency, options.seconds, options.warm_up)
                report.write(options.out, {"cells": figures}, "sglang", "torch", "triton")
        report.write(options.out, {"cells": figures}, "sglang", "torch", "triton")
    draw(figures, report.RESULTS / f"{options.out}.png")


if __name__ == "__main__":
    main()
