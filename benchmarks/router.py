"""Measure `auto` against each fixed way to decode, over concurrency, on servers that run.

    python benchmarks/router.py URL [--checkpoints DIR ...] [--concurrency 1,2,4,...] [--prompts mixed] [--out NAME]
    python benchmarks/router.py URL --within 420 ...     # all cells in so many seconds

Clients send one request after another, greedily, with answers that end where they end. A cell is a way to decode at a
concurrency: output tokens per second over its time, once it is warm. At each concurrency fixed ways are measured
briefly: of each kind, from the width or budget that was the fastest at the concurrency before, wider and narrower ones
until one is far slower; and budgets for as many requests as there are CUDA graphs for. Then `auto`, the two fastest,
and `autoregressive` where it is not far behind, take turns, which are as long as `--within` allows for. The
checkpoints, if given, are loaded into the server one after another (`/update_weights_from_disk`): the same model with
drafts of another quality.

`auto` is compared with the fixed way that is the fastest in the *other* turns: the fastest in the same ones is more
often one that was lucky. Of the turns' ratios, `auto_over_best` in the file has the geometric mean and its standard
error.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import report

from dlm_serve.bundled import FOLDER
from dlm_serve.evaluation.load import Cell, Clients
from dlm_serve.evaluation.load_plot import AUTO, draw
from dlm_serve.scheduling.graph_shapes import MOST_SPECULATED
from dlm_serve.training.tasks import TASKS
from dlm_serve.training.tokenizer import load_tokenizer, render_prompt

CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128)
WIDTHS = (4, 8, 16, 32)
BUDGETS = (16, 32, 64, 96, 128)
IN_TURN: dict[str, dict[str, Any]] = {
    f"self_speculation/{width}": {"mode": "self_speculation", "block_length": width} for width in WIDTHS
}
IN_ONE_FORWARD: dict[str, dict[str, Any]] = {
    f"self_speculation/one_forward/{budget}": {
        "mode": "self_speculation",
        "speculation": "one_forward",
        "budget": budget,
    }
    for budget in BUDGETS
}
AUTOREGRESSIVE = "autoregressive"
WAYS: dict[str, dict[str, Any]] = {AUTOREGRESSIVE: {"mode": AUTOREGRESSIVE}, **IN_TURN, **IN_ONE_FORWARD, AUTO: {}}
NEAR = 0.7
"""Of the fastest way's speed: below it, autoregression does not contend."""
FAR = 0.8
"""Of the speed of the fastest of its kind: below it, neither wider nor narrower ones are measured."""
LEAST_TURN = 0.3
"""Seconds."""


def task_prompts(names: Iterable[str] = TASKS) -> list[list[int]]:
    """Return prompts of the named tasks, of those that the bundled model was trained for."""
    tokenizer = load_tokenizer(Path(FOLDER))
    examples = [example for name in names for example in TASKS[name].examples("heldout", 40, seed=11)]
    random.Random(3).shuffle(examples)
    rendered = [render_prompt([example.prompt]) for example in examples]
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in rendered]


def mixed_prompts() -> list[list[int]]:
    """Return prompts of the tasks and prompts of random tokens in turn: answers easy to draft, and hard."""
    easy = task_prompts()
    ordinary = range(512, min(load_tokenizer(Path(FOLDER)).get_vocab_size(), 2048))
    random_tokens = random.Random(5)
    return [prompt for ids in easy for prompt in (ids, random_tokens.choices(ordinary, k=len(ids)))]


def long_prompts() -> list[list[int]]:
    """Return prompts of the tasks with the longest answers, some 110 tokens."""
    return task_prompts(("sorting", "units"))


PROMPTS: dict[str, Callable[[], list[list[int]]]] = {
    "tasks": task_prompts,
    "long": long_prompts,
    "mixed": mixed_prompts,
}


@dataclass(frozen=True)
class Times:
    """How long cells are measured, in seconds: fixed ways briefly, then the contenders in turns."""

    screening: float
    turn: float
    num_turns: int
    warm_up: float

    def within(self, seconds: float, num_contenders: int) -> Times:
        """Return turns of so many contenders that take `seconds` together."""
        turn = seconds / (self.num_turns * num_contenders) - self.warm_up
        return replace(self, turn=round(max(turn, LEAST_TURN), 2))


Row = dict[str, dict[str, Any]]
"""The figures of ways to decode at one concurrency."""


class Measurement:
    """Measures ways to decode on one server."""

    def __init__(self, clients: Clients, times: Times) -> None:
        self._clients = clients
        self._times = times
        self._fastest: dict[int, str] = {}
        """By kind, the fastest at the concurrency before."""

    def row(self, concurrency: int, until: float = math.inf) -> Row:
        """Return the figures of ways at one concurrency; those that contend for the best have some for each turn.

        Turns are as long as they need to be over by the time `until`, if that is given.
        """
        cells = self._screened(concurrency)
        contenders = [AUTO, *contending({name: cell.tokens_per_s for name, cell in cells.items()})]
        times = self._times
        if until < math.inf:
            times = times.within(until - time.perf_counter(), len(contenders))
        cells.update({name: Cell() for name in contenders})
        turns: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(times.num_turns):
            for name in contenders[turn % len(contenders) :] + contenders[: turn % len(contenders)]:
                before = cells[name].tokens
                self._measure(cells[name], name, concurrency, times.turn)
                turns[name].append(round((cells[name].tokens - before) / times.turn, 1))
        return {
            name: {**cells[name].summary(), "contends": name in turns, "turns": turns.get(name, [])}
            for name in WAYS
            if name in cells
        }

    def warm(self, concurrency: int) -> None:
        """Compile kernels, and let estimates settle."""
        for _ in range(2):
            self._measure(Cell(), AUTO, concurrency, 1.0)

    def _screened(self, concurrency: int) -> dict[str, Cell]:
        """Return brief measurements of the fixed ways that may be the fastest."""
        cells = {AUTOREGRESSIVE: self._brief(AUTOREGRESSIVE, concurrency)}
        budgets = [name for name, way in IN_ONE_FORWARD.items() if way["budget"] * concurrency <= MOST_SPECULATED]
        for kind, names in enumerate((list(IN_TURN), budgets)):
            if names:
                first = self._fastest.get(kind, names[-1])
                found = walked(names, first, lambda name: self._brief(name, concurrency))
                self._fastest[kind] = max(found, key=lambda name: found[name].tokens_per_s)
                cells.update(found)
        return cells

    def _brief(self, name: str, concurrency: int) -> Cell:
        cell = Cell()
        self._measure(cell, name, concurrency, self._times.screening)
        return cell

    def _measure(self, cell: Cell, name: str, concurrency: int, seconds: float) -> None:
        self._clients.measure(cell, WAYS[name], concurrency, seconds, self._times.warm_up, aborts=True)


def walked(names: Sequence[str], first: str, measure: Callable[[str], Cell]) -> dict[str, Cell]:
    """Return what `measure` gives for `first`, or the last of `names`, and on both sides up to one that is far slower.

    `names` is sorted by width.
    """
    middle = names.index(first) if first in names else len(names) - 1
    cells: dict[str, Cell] = {}
    for direction in (names[middle:], names[:middle][::-1]):
        for name in direction:
            cells[name] = measure(name)
            if cells[name].tokens_per_s < FAR * max(cell.tokens_per_s for cell in cells.values()):
                break
    return cells


def contending(tokens_per_s: dict[str, float]) -> list[str]:
    """Return the fixed ways that may be the best, of what a brief measurement gave."""
    fastest = sorted(tokens_per_s, key=lambda name: -tokens_per_s[name])
    near = tokens_per_s[AUTOREGRESSIVE] > NEAR * tokens_per_s[fastest[0]]
    return fastest[:2] + ([AUTOREGRESSIVE] if near and AUTOREGRESSIVE not in fastest[:2] else [])


def best_fixed(row: Row) -> str:
    """Return the fastest fixed way among those that contended."""
    contenders = [name for name in row if name != AUTO and row[name]["contends"]]
    return max(contenders, key=lambda name: row[name]["tokens_per_s"])


def over(row: Row, names: Iterable[str]) -> dict[str, float]:
    """Return `auto` over a fixed way: each turn's ratio is to that of `names` that is the fastest in the other turns.

    Their geometric mean, and its standard error, which is NaN if there was one turn.
    """
    turns = {name: row[name]["turns"] for name in names}
    logs = []
    for turn, speed in enumerate(row[AUTO]["turns"]):
        best = max(turns, key=lambda name: sum(turns[name]) - turns[name][turn])
        logs.append(math.log(speed / turns[best][turn]))
    mean = math.exp(statistics.mean(logs))
    error = mean * statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else math.nan
    return {"mean": round(mean, 3), "standard_error": round(error, 3)}


def ratios_of(row: Row) -> dict[str, dict[str, float]]:
    """Return `auto` over the best fixed way, and over autoregression where that contended."""
    contenders = [name for name in row if name != AUTO and row[name]["contends"]]
    ratios = {"auto_over_best": over(row, contenders)}
    if AUTOREGRESSIVE in contenders:
        ratios["auto_over_autoregressive"] = over(row, [AUTOREGRESSIVE])
    return ratios


def print_row(concurrency: int, row: Row, ratios: dict[str, dict[str, float]]) -> None:
    """Print what a concurrency came to."""
    speeds = {name: round(figures["tokens_per_s"]) for name, figures in row.items()}
    compared = ", ".join(
        f"{name} {ratio['mean']:.3f} +- {ratio['standard_error']:.3f}" for name, ratio in ratios.items()
    )
    accepted = {name: figures["acceptance_length"] for name, figures in row.items() if figures["acceptance_length"]}
    sys.stdout.write(
        f"{concurrency:4d} {speeds} {compared} (best {best_fixed(row)}), auto {row[AUTO]['tokens']}, "
        f"{row[AUTO]['mode_switches']} switches, accepts {accepted}\n"
    )
    sys.stdout.flush()


def main() -> None:
    """Print a row for each concurrency, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", metavar="URL")
    parser.add_argument("--checkpoints", nargs="+", metavar="DIR", default=[""], help="the server's own, without")
    parser.add_argument("--screening", type=float, default=1.0, help="seconds for each fixed way")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn of those that contend for the best")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--warm-up", type=float, default=0.5, help="seconds before each measurement")
    parser.add_argument("--concurrency", default=",".join(map(str, CONCURRENCIES)))
    parser.add_argument("--prompts", choices=PROMPTS, default="tasks")
    parser.add_argument("--out", default="router", help="name of the file in benchmarks/results")
    parser.add_argument("--within", type=float, default=math.inf, help="seconds for all; turns are as long as fits")
    options = parser.parse_args()
    end = time.perf_counter() + options.within
    times = Times(options.screening, options.seconds, options.turns, options.warm_up)
    numbers = list(map(int, options.concurrency.split(",")))
    clients = Clients(options.url, PROMPTS[options.prompts]())
    results: dict[str, dict[str, Row]] = {}
    ratios: dict[str, dict[str, dict[str, Any]]] = {}
    seconds_of_load = 0.0
    for number, checkpoint in enumerate(options.checkpoints):
        start = time.perf_counter()
        if checkpoint:
            clients.load(checkpoint)
        measurement = Measurement(clients, times)
        measurement.warm(max(numbers))
        seconds_of_load = time.perf_counter() - start
        name = Path(checkpoint).name or "server"
        cells = results.setdefault(name, {})
        for place, concurrency in enumerate(numbers):
            left = end - time.perf_counter() - seconds_of_load * (len(options.checkpoints) - number - 1)
            num_left = (len(options.checkpoints) - number) * len(numbers) - place
            row = cells[str(concurrency)] = measurement.row(concurrency, time.perf_counter() + left / num_left)
            found = ratios_of(row)
            for compared, ratio in found.items():
                ratios.setdefault(compared, {}).setdefault(name, {})[str(concurrency)] = ratio
            print_row(concurrency, row, found)
            figures = {"times": asdict(times), "prompts": options.prompts, **ratios, "cells": results}
            report.write(options.out, figures, "sglang", "torch")
        draw(cells, report.RESULTS / f"{options.out}{f'_{number}' if number else ''}.png")


if __name__ == "__main__":
    main()
