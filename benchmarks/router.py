"""Measure `auto` against each fixed way to decode, over concurrency, on servers that run.

    python benchmarks/router.py URL [--checkpoints DIR ...] [--concurrency 1,2,4,...] [--prompts mixed] [--out NAME]

Clients send one request after another, greedily, with answers that end where they end. A cell is a way to decode at a
concurrency: output tokens per second over its time, once it is warm. At each concurrency all fixed ways are measured
briefly; then `auto`, the two fastest, and `autoregressive` where it is not far behind, take turns. The checkpoints, if
given, are loaded into the server one after another (`/update_weights_from_disk`): the same model with drafts of another
quality.

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
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import report

from dlm_serve.bundled import FOLDER
from dlm_serve.evaluation.load import Cell, Clients
from dlm_serve.evaluation.load_plot import AUTO, draw
from dlm_serve.training.tasks import TASKS
from dlm_serve.training.tokenizer import load_tokenizer, render_prompt

CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128)
WIDTHS = (4, 8, 16, 32)
WAYS: dict[str, dict[str, Any]] = {
    "autoregressive": {"mode": "autoregressive"},
    **{f"self_speculation/{width}": {"mode": "self_speculation", "block_length": width} for width in WIDTHS},
    AUTO: {},
}
FIXED = [name for name in WAYS if name != AUTO]
NEAR = 0.7
"""Of the fastest way's speed: below it, autoregression does not contend."""


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
    """How long cells are measured, in seconds: all fixed ways briefly, then the contenders in turns."""

    screening: float
    turn: float
    num_turns: int
    warm_up: float


def measure_row(clients: Clients, concurrency: int, times: Times) -> dict[str, dict[str, Any]]:
    """Return the figures of every way at one concurrency; those that contend for the best have some for each turn."""
    screened = {name: Cell() for name in FIXED}
    for name, cell in screened.items():
        clients.measure(cell, WAYS[name], concurrency, times.screening, times.warm_up)
    contenders = [AUTO, *contending({name: cell.tokens_per_s for name, cell in screened.items()})]
    cells = {name: Cell() for name in contenders}
    turns: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(times.num_turns):
        for name in contenders[turn % len(contenders) :] + contenders[: turn % len(contenders)]:
            before = cells[name].tokens
            clients.measure(cells[name], WAYS[name], concurrency, times.turn, times.warm_up)
            turns[name].append(round((cells[name].tokens - before) / times.turn, 1))
    return {
        name: {**cell.summary(), "contends": name in cells, **({"turns": turns[name]} if name in cells else {})}
        for name, cell in {**{name: screened.get(name, Cell()) for name in WAYS}, **cells}.items()
    }


def contending(tokens_per_s: dict[str, float]) -> list[str]:
    """Return the fixed ways that may be the best, of what a brief measurement gave."""
    fastest = sorted(tokens_per_s, key=lambda name: -tokens_per_s[name])
    near = tokens_per_s["autoregressive"] > NEAR * tokens_per_s[fastest[0]]
    return fastest[:2] + (["autoregressive"] if near and "autoregressive" not in fastest[:2] else [])


def best_fixed(row: dict[str, dict[str, Any]]) -> str:
    """Return the fastest fixed way among those that contended."""
    contenders = [name for name in FIXED if row[name]["contends"]]
    return max(contenders, key=lambda name: row[name]["tokens_per_s"])


def over_best(row: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return `auto` over the best fixed way: each turn's ratio is to the one that is the fastest in the other turns.

    Their geometric mean, and its standard error, which is NaN if there was one turn.
    """
    turns = {name: figures["turns"] for name, figures in row.items() if figures["contends"]}
    auto = turns.pop(AUTO)
    logs = []
    for turn, speed in enumerate(auto):
        best = max(turns, key=lambda name: sum(turns[name]) - turns[name][turn])
        logs.append(math.log(speed / turns[best][turn]))
    mean = math.exp(statistics.mean(logs))
    error = mean * statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else math.nan
    return {"mean": round(mean, 3), "standard_error": round(error, 3)}


def print_row(concurrency: int, row: dict[str, dict[str, Any]], ratio: dict[str, float]) -> None:
    """Print what a concurrency came to."""
    speeds, best = {name: round(figures["tokens_per_s"]) for name, figures in row.items()}, best_fixed(row)
    sys.stdout.write(
        f"{concurrency:4d} {speeds} auto/best {ratio['mean']:.3f} +- {ratio['standard_error']:.3f} (of means "
        f"{speeds[AUTO] / speeds[best]:.3f}, {best}), auto/autoregressive "
        f"{speeds[AUTO] / speeds['autoregressive']:.3f}, auto {row[AUTO]['tokens']}, "
        f"accept {row['self_speculation/32']['acceptance_length']}\n"
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
    options = parser.parse_args()
    times = Times(options.screening, options.seconds, options.turns, options.warm_up)
    numbers = list(map(int, options.concurrency.split(",")))
    clients = Clients(options.url, PROMPTS[options.prompts]())
    results: dict[str, dict[str, Any]] = {}
    ratios: dict[str, dict[str, Any]] = {}
    for number, checkpoint in enumerate(options.checkpoints):
        if checkpoint:
            clients.load(checkpoint)
        for _ in range(2):  # compiles kernels, and lets estimates settle
            clients.measure(Cell(), WAYS[AUTO], max(numbers), times.turn, times.warm_up)
        name = Path(checkpoint).name or "server"
        cells, ratio = results.setdefault(name, {}), ratios.setdefault(name, {})
        for concurrency in numbers:
            row = cells[str(concurrency)] = measure_row(clients, concurrency, times)
            ratio[str(concurrency)] = over_best(row)
            print_row(concurrency, row, ratio[str(concurrency)])
            figures = {"times": asdict(times), "prompts": options.prompts, "auto_over_best": ratios, "cells": results}
            report.write(options.out, figures, "sglang", "torch")
        draw(cells, report.RESULTS / f"{options.out}{f'_{number}' if number else ''}.png")


if __name__ == "__main__":
    main()
