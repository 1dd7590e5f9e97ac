"""Measure `auto` against each fixed way to decode, over concurrency, on servers that run.

    python benchmarks/router.py URL [--checkpoints DIR ...] [--concurrency 1,2,4,...] [--prompts mixed] [--out NAME]

Clients send one request after another, greedily, with answers that end where they end. A cell is a way to decode at a
concurrency: output tokens per second over its time, once it is warm. At each concurrency all fixed ways are measured
briefly; then `auto`, `autoregressive` and the two fastest take turns. The checkpoints, if given, are loaded into the
server one after another (`/update_weights_from_disk`): the same model with drafts of another quality.
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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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
FIXED = [name for name in WAYS if name != AUTO]
MAX_NEW_TOKENS = 256


@dataclass
class Cell:
    """What clients of one way to decode, at one concurrency, have seen."""

    seconds: float = 0.0
    tokens: float = 0.0
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
            "tokens_per_forward": round(
                statistics.mean([s["tokens_per_forward"] or 0 for s in self.statistics] or [0]), 3
            ),
            "acceptance_length": round(statistics.mean(accepted), 2) if accepted else None,
            "tokens": by_choice,
            "mode_switches": sum(s["mode_switches"] for s in self.statistics),
        }


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


class Clients:
    """Clients that ask one request after another, as many at once as they are told."""

    def __init__(self, url: str, prompts: Sequence[list[int]], request: dict[str, Any] | None = None) -> None:
        """Let them ask the server at `url` the `prompts`, greedily unless the `sampling_params` of `request` differ."""
        request = request or {}
        self._address = urlsplit(url)
        self._prompts = prompts
        self._sampling = {"temperature": 0, "max_new_tokens": MAX_NEW_TOKENS, **request.get("sampling_params", {})}
        self._request = {name: value for name, value in request.items() if name != "sampling_params"}

    def measure(self, cell: Cell, options: dict[str, Any], concurrency: int, seconds: float, warm_up: float) -> None:
        """Add to `cell` what `concurrency` clients get in so many seconds, once `warm_up` seconds are over.

        An answer counts for the part of its time that lies within those seconds.
        """
        lock = threading.Lock()
        # Few enough that every way decodes the same ones, and as many as clients.
        first = random.Random(concurrency).randrange(len(self._prompts))
        chosen = [self._prompts[(first + i) % len(self._prompts)] for i in range(max(16, concurrency))]
        numbers = itertools.count()
        start = time.perf_counter() + warm_up
        end = start + seconds

        def client() -> None:
            connection = http.client.HTTPConnection(self._address.hostname or "", self._address.port, timeout=300)
            while (sent := time.perf_counter()) < end:
                meta = self._ask(connection, chosen[next(numbers) % len(chosen)], options)
                received = time.perf_counter()
                share = (min(received, end) - max(sent, start)) / (received - sent)
                if share > 0:
                    with lock:
                        cell.tokens += share * meta["completion_tokens"]
                        cell.statistics.append(meta["dlm"])
            connection.close()

        clients = [threading.Thread(target=client) for _ in range(concurrency)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        cell.seconds += seconds

    def load(self, checkpoint: str) -> None:
        """Make the server load the weights of another checkpoint."""
        connection = http.client.HTTPConnection(self._address.hostname or "", self._address.port, timeout=300)
        answer = self._post(connection, "/update_weights_from_disk", {"model_path": checkpoint})
        if not answer["success"]:
            raise RuntimeError(answer["message"])

    def _ask(self, connection: http.client.HTTPConnection, prompt: list[int], options: dict[str, Any]) -> Any:
        """Return the `meta_info` of an answer."""
        sampling = {**self._sampling, "custom_params": {"dlm": options}}
        body = {"input_ids": prompt, "sampling_params": sampling, **self._request}
        return self._post(connection, "/generate", body)["meta_info"]

    @staticmethod
    def _post(connection: http.client.HTTPConnection, path: str, body: dict[str, Any]) -> Any:
        """Return the answer to a body. Raises RuntimeError, with the server's words, unless it is 200."""
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
        if response.status != http.client.OK:
            raise RuntimeError(text.decode())
        return json.loads(text)


@dataclass(frozen=True)
class Times:
    """How long cells are measured, in seconds: all fixed ways briefly, then the contenders in turns."""

    screening: float
    turn: float
    num_turns: int
    warm_up: float


def measure_row(clients: Clients, concurrency: int, times: Times) -> dict[str, dict[str, Any]]:
    """Return the figures of every way at one concurrency; the best of the fixed ones is said by `best_fixed`."""
    cells = {name: Cell() for name in WAYS}
    for name in FIXED:
        clients.measure(cells[name], WAYS[name], concurrency, times.screening, times.warm_up)
    fastest = sorted(FIXED, key=lambda name: -cells[name].tokens_per_s)[:2]
    contenders = sorted({"autoregressive", AUTO, *fastest})
    # Afresh: the fastest of noisy figures is more often one that was lucky.
    cells |= {name: Cell() for name in contenders}
    for _ in range(times.num_turns):
        for name in contenders:
            clients.measure(cells[name], WAYS[name], concurrency, times.turn, times.warm_up)
    return {name: {**cell.summary(), "contends": name in contenders} for name, cell in cells.items()}


def best_fixed(row: dict[str, dict[str, Any]]) -> str:
    """Return the fastest fixed way among those that were measured longest."""
    contenders = [name for name in FIXED if row[name]["contends"]]
    return max(contenders, key=lambda name: row[name]["tokens_per_s"])


def draw(cells: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw tokens per second, and tokens per forward, against concurrency: a line for each way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    cells = dict(sorted(cells.items(), key=lambda cell: int(cell[0])))
    titles = {"tokens_per_s": "output tokens per second", "tokens_per_forward": "tokens per forward of a request"}
    for axes, (figure_of, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for name in WAYS:
            style = {"color": "black", "linewidth": 2.5} if name == AUTO else {"linewidth": 1}
            axes.plot(
                list(map(int, cells)), [row[name][figure_of] for row in cells.values()], "o-", label=name, **style
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set(xlabel="requests at once", title=title)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=130)


def print_row(concurrency: int, row: dict[str, dict[str, Any]]) -> None:
    """Print what a concurrency came to."""
    speeds, best = {name: figures["tokens_per_s"] for name, figures in row.items()}, best_fixed(row)
    sys.stdout.write(
        f"{concurrency:4d} {speeds} auto/best {speeds[AUTO] / speeds[best]:.3f} ({best}), "
        f"auto/autoregressive {speeds[AUTO] / speeds['autoregressive']:.3f}, auto {row[AUTO]['tokens']}, "
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
    for number, checkpoint in enumerate(options.checkpoints):
        if checkpoint:
            clients.load(checkpoint)
        for _ in range(2):  # compiles kernels, and lets estimates settle
            clients.measure(Cell(), WAYS[AUTO], max(numbers), times.turn, times.warm_up)
        cells = results[Path(checkpoint).name or "server"] = {}
        for concurrency in numbers:
            row = cells[str(concurrency)] = measure_row(clients, concurrency, times)
            print_row(concurrency, row)
            report.write(options.out, {"cells": results}, "sglang", "torch")
        draw(cells, report.RESULTS / f"{options.out}{f'_{number}' if number else ''}.png")


if __name__ == "__main__":
    main()
