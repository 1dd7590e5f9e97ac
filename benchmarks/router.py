"""Measure `auto` against each fixed way to decode, over concurrency, on servers that run.

    python benchmarks/router.py URL [URL ...] [--seconds 4] [--concurrency 1,2,4,...] [--out NAME]

Clients send one request after another, greedily, with answers that end where they end. A cell is a way to decode at a
concurrency: output tokens per second over its time, once it is warm. All ways are measured in turn at each concurrency.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import random
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import report

from dlm_serve.bundled import FOLDER
from dlm_serve.training.tasks import TASKS
from dlm_serve.training.tokenizer import load_tokenizer, render_prompt

CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128)
WIDTHS = (4, 8, 16, 32)
AUTO = "auto"
WAYS: dict[str, dict[str, Any]] = {
    "autoregressive": {"mode": "autoregressive"},
    **{f"self_speculation/{width}": {"mode": "self_speculation", "block_length": width} for width in WIDTHS},
    AUTO: {},
}
MAX_NEW_TOKENS = 256


@dataclass
class Cell:
    """What clients of one way to decode, at one concurrency, have seen."""

    tokens: int = 0
    seconds: float = 0.0
    statistics: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        """Return output tokens per second, of all clients together."""
        return self.tokens / self.seconds

    def summary(self) -> dict[str, Any]:
        """Return the figures of the cell."""
        accepted = [s["acceptance_length"] for s in self.statistics if s["acceptance_length"]]
        by_choice: dict[str, int] = {}
        for of_request in self.statistics:
            for name, number in of_request["tokens"].items():
                by_choice[name] = by_choice.get(name, 0) + number
        return {
            "tokens_per_s": round(self.tokens_per_s, 1),
            "requests": len(self.statistics),
            "tokens_per_forward": round(statistics.mean([s["tokens_per_forward"] or 0 for s in self.statistics] or [0]), 3),
            "acceptance_length": round(statistics.mean(accepted), 2) if accepted else None,
            "tokens": by_choice,
            "mode_switches": sum(s["mode_switches"] for s in self.statistics),
        }


def task_prompts() -> list[list[int]]:
    """Return prompts of the tasks that the bundled model was trained for."""
    tokenizer = load_tokenizer(Path(FOLDER))
    examples = [example for task in TASKS.values() for example in task.examples("heldout", 40, seed=11)]
    random.Random(3).shuffle(examples)
    rendered = [render_prompt([example.prompt]) for example in examples]
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in rendered]


def measure_cell(
    url: str, prompts: Sequence[list[int]], options: dict[str, Any], concurrency: int, seconds: float, warm_up: float
) -> Cell:
    """Let `concurrency` clients ask for so long; what they get in the first `warm_up` seconds is not counted.

    Answers are streamed, so that tokens count when they come, wherever an answer begins or ends.
    """
    cell, lock = Cell(), threading.Lock()
    start = time.perf_counter() + warm_up
    end = start + seconds
    # Few enough that every way decodes the same ones, and more than clients, so that each is another's neighbour.
    prompts = random.Random(concurrency).sample(prompts, max(16, min(concurrency, len(prompts))))
    numbers = itertools.count()

    def client() -> None:
        with httpx.Client(timeout=300) as session:
            while time.perf_counter() < end:
                number = next(numbers)
                body = {
                    "input_ids": prompts[number % len(prompts)],
                    "sampling_params": {
                        "temperature": 0,
                        "max_new_tokens": MAX_NEW_TOKENS,
                        "custom_params": {"dlm": options},
                    },
                }
                answer = session.post(f"{url}/generate", json=body)
                if answer.status_code != httpx.codes.OK:
                    raise SystemExit(answer.text)
                meta = answer.json()["meta_info"]
                if start <= time.perf_counter() < end:
                    with lock:
                        cell.tokens += meta["completion_tokens"]
                        cell.statistics.append(meta["dlm"])

    clients = [threading.Thread(target=client) for _ in range(concurrency)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    cell.seconds = seconds
    return cell


def _chunks(session: httpx.Client, url: str, body: dict[str, Any]) -> Iterator[tuple[float, int, dict[str, Any]]]:
    """Yield the time, the tokens so far and the statistics of each chunk of a streamed answer."""
    with session.stream("POST", f"{url}/generate", json=body) as response:
        if response.status_code != httpx.codes.OK:
            raise SystemExit(response.read().decode())
        for line in response.iter_lines():
            if line.startswith("data: {"):
                meta = json.loads(line[len("data: ") :])["meta_info"]
                yield time.perf_counter(), meta["completion_tokens"], meta["dlm"]


def main() -> None:
    """Print a row for each concurrency, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("urls", nargs="+", metavar="URL")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--warm-up", type=float, default=1.0)
    parser.add_argument("--concurrency", default=",".join(map(str, CONCURRENCIES)))
    parser.add_argument("--out", default="router", help="name of the file in benchmarks/results")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    prompts = task_prompts()
    for url in options.urls:
        numbers = list(map(int, options.concurrency.split(",")))
        measure_cell(url, prompts, WAYS[AUTO], max(numbers), options.seconds, options.warm_up + 5)  # compiles kernels
        for concurrency in numbers:
            row: dict[str, Any] = {}
            for name, dlm in WAYS.items():
                cell = measure_cell(url, prompts, dlm, concurrency, options.seconds, options.warm_up)
                row[name] = cell.summary()
            results[f"{url} {concurrency}"] = row
            best = max((name for name in row if name != AUTO), key=lambda name: row[name]["tokens_per_s"])
            speeds = {name: figures["tokens_per_s"] for name, figures in row.items()}
            sys.stdout.write(
                f"{concurrency:4d} {speeds} auto/best {speeds[AUTO] / speeds[best]:.3f} ({best}), "
                f"auto/autoregressive {speeds[AUTO] / speeds['autoregressive']:.3f}, auto {row[AUTO]['tokens']}, "
                f"accept {row['self_speculation/32']['acceptance_length']}\n"
            )
            sys.stdout.flush()
        report.write(options.out, {"cells": results}, "sglang", "torch")


if __name__ == "__main__":
    main()
