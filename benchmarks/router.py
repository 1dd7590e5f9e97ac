"""Measure `auto` against each fixed way to decode, over concurrency, on a server that runs.

    python benchmarks/router.py URL [--checkpoints DIR ...] [--concurrency 1,2,4,...] [--prompts mixed] [--out NAME]
    python benchmarks/router.py URL --within 420 ...     # all cells in so many seconds

Clients with mode `auto` send one request after another, greedily, with answers that end where they end. They go on
while the router is pinned to one way after the other (`POST /dlm/routing`), from whose blocks it does not learn. So
ways differ in nothing else, and no time is lost between them. Output tokens per second are those that the server counts
over a window of time, behind a moment in which requests move.

At each concurrency fixed ways have a short window: of each kind, from the width or budget that was the fastest at the
concurrency before, wider and narrower ones until one is far slower; and budgets for as many requests as there are CUDA
graphs for. Then the two fastest, `autoregressive` where it is not far behind, and `auto` take turns, which are as long
as `--within` allows for. The checkpoints, if given, are loaded into the server one after another
(`/update_weights_from_disk`): the same model with drafts of another quality.

`auto` is compared with the fixed way that is the fastest in the *other* turns: the fastest in the same ones is more
often one that was lucky. Of the turns' ratios, `auto_over_best` in the file has the geometric mean and its standard
error.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import report
from pinned_windows import AUTOREGRESSIVE, IN_ONE_FORWARD, IN_TURN, PINS, Server, Window, has_graphs
from prompts import PROMPTS

from dlm_serve.evaluation.load import Clients
from dlm_serve.evaluation.load_plot import AUTO, draw

CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128)
NEAR = 0.7
"""Of the fastest way's speed: below it, autoregression does not contend."""
FAR = 0.8
"""Of the speed of the fastest of its kind: below it, neither wider nor narrower ones are measured."""
LEAST_TURN = 0.3
"""Seconds."""


@dataclass(frozen=True)
class Times:
    """How long ways are measured, in seconds: fixed ways briefly, then the contenders in turns."""

    screening: float
    turn: float
    num_turns: int
    settling: float
    """Before each window."""
    begin: float
    """Before the first window at a concurrency, so that answers no longer end together."""

    def within(self, seconds: float, num_contenders: int) -> Times:
        """Return turns of so many contenders that take `seconds` together."""
        turn = seconds / (self.num_turns * num_contenders) - self.settling
        return replace(self, turn=round(max(turn, LEAST_TURN), 2))


Row = dict[str, dict[str, Any]]
"""The figures of ways to decode at one concurrency."""


class Measurement:
    """Measures ways to decode on a server that clients keep busy."""

    def __init__(self, clients: Clients, server: Server, times: Times) -> None:
        self._clients = clients
        self._server = server
        self._times = times
        self._choices = server.choices()
        self._fastest: dict[int, str] = {}
        """By kind, the fastest at the concurrency before."""

    def row(self, concurrency: int, until: float = math.inf) -> Row:
        """Return the figures of ways at one concurrency; those that contend for the best have some for each turn.

        Turns are as long as they need to be over by the time `until`, if that is given.
        """
        with self._clients.busy({}, concurrency):
            time.sleep(self._times.begin)
            screened = self._screened(concurrency)
            contenders = [*contending({way: window.tokens_per_s for way, window in screened.items()}), AUTO]
            times = self._times
            if until < math.inf:
                times = times.within(until - time.perf_counter(), len(contenders))
            windows = {way: Window() for way in contenders}
            turns: dict[str, list[float]] = {way: [] for way in contenders}
            for turn in range(times.num_turns):
                first = turn % len(contenders)  # no way always comes behind the same one
                for way in contenders[first:] + contenders[:first]:
                    turns[way].append(round(self._measure(windows[way], way, times.turn), 1))
        return {
            way: {**({**screened, **windows}[way].summary(way)), "contends": way in turns, "turns": turns.get(way, [])}
            for way in PINS
            if way in screened or way in windows
        }

    def warm(self, concurrency: int, seconds: float) -> None:
        """Compile kernels, and let the router learn."""
        for number in (concurrency, 1):
            with self._clients.busy({}, number):
                time.sleep(seconds)

    def _screened(self, concurrency: int) -> dict[str, Window]:
        """Return brief measurements of the fixed ways that may be the fastest."""
        windows = {AUTOREGRESSIVE: self._brief(AUTOREGRESSIVE)}
        budgets = [way for way, pin in IN_ONE_FORWARD.items() if has_graphs(pin["budget"], concurrency)]
        for kind, named in enumerate((IN_TURN, budgets)):
            ways = [way for way in named if way in self._choices]
            if ways:
                found = walked(ways, self._fastest.get(kind, ways[-1]), self._brief)
                self._fastest[kind] = max(found, key=lambda way: found[way].tokens_per_s)
                windows.update(found)
        return windows

    def _brief(self, way: str) -> Window:
        window = Window()
        self._measure(window, way, self._times.screening)
        return window

    def _measure(self, window: Window, way: str, seconds: float) -> float:
        """Add a period of so many `seconds` to `window`; return its tokens per second."""
        self._server.pin(way)
        time.sleep(self._times.settling)
        before = self._server.replicas()
        time.sleep(seconds)
        return window.add(before, self._server.replicas())


def walked(names: Sequence[str], first: str, measure: Callable[[str], Window]) -> dict[str, Window]:
    """Return what `measure` gives for `first`, or the last of `names`, and on both sides up to one that is far slower.

    `names` is sorted by width.
    """
    middle = names.index(first) if first in names else len(names) - 1
    windows: dict[str, Window] = {}
    for direction in (names[middle:], names[:middle][::-1]):
        for name in direction:
            windows[name] = measure(name)
            if windows[name].tokens_per_s < FAR * max(cell.tokens_per_s for cell in windows.values()):
                break
    return windows


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
        f"{concurrency:4d} {speeds} {compared} (best {best_fixed(row)}), auto {row[AUTO]['requests']}, "
        f"{row[AUTO]['mode_switches']} switches, accepts {accepted}\n"
    )
    sys.stdout.flush()


def share_of(concurrency: int) -> float:
    """Return how much time a concurrency is given, by comparison: few requests end few answers, which scatter."""
    return 1 + 1.5 / concurrency


def arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", metavar="URL")
    parser.add_argument("--checkpoints", nargs="+", metavar="DIR", default=[""], help="the server's own, without")
    parser.add_argument("--screening", type=float, default=1.0, help="seconds for each fixed way")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn of those that contend for the best")
    parser.add_argument("--turns", type=int, default=2, help="at least 2: each is compared with the others")
    parser.add_argument("--settling", type=float, default=0.4, help="seconds before each measurement")
    parser.add_argument("--begin", type=float, default=2.0, help="seconds before the first one at a concurrency")
    parser.add_argument("--concurrency", default=",".join(map(str, CONCURRENCIES)))
    parser.add_argument("--prompts", choices=PROMPTS, default="tasks")
    parser.add_argument("--out", default="router", help="name of the file in benchmarks/results")
    parser.add_argument("--within", type=float, default=math.inf, help="seconds for all; turns are as long as fits")
    options = parser.parse_args()
    if options.turns < 2:
        parser.error("--turns must be at least 2: each is compared with the others")
    return options


def main() -> None:
    """Print a row for each concurrency, and write the figures."""
    options = arguments()
    server = Server(options.url)
    try:
        measure(server, options)
    finally:
        server.pin(AUTO)


def measure(server: Server, options: argparse.Namespace) -> None:
    """Measure each checkpoint at each concurrency; write the figures as they come, and a plot of each checkpoint."""
    end = time.perf_counter() + options.within
    times = Times(options.screening, options.seconds, options.turns, options.settling, options.begin)
    numbers = list(map(int, options.concurrency.split(",")))
    clients = Clients(options.url, PROMPTS[options.prompts]())
    results: dict[str, dict[str, Row]] = {}
    ratios: dict[str, dict[str, dict[str, Any]]] = {}
    seconds_of_load = 0.0
    for number, checkpoint in enumerate(options.checkpoints):
        start = time.perf_counter()
        server.pin(AUTO)
        if checkpoint:
            clients.load(checkpoint)
        measurement = Measurement(clients, server, times)
        measurement.warm(max(numbers), options.begin)
        seconds_of_load = time.perf_counter() - start
        name = Path(checkpoint).name or "server"
        cells = results.setdefault(name, {})
        num_later = len(options.checkpoints) - number - 1
        for place, concurrency in enumerate(numbers):
            left = end - time.perf_counter() - seconds_of_load * num_later
            shares_left = sum(map(share_of, numbers[place:])) + num_later * sum(map(share_of, numbers))
            until = time.perf_counter() + left * share_of(concurrency) / shares_left
            row = cells[str(concurrency)] = measurement.row(concurrency, until)
            found = ratios_of(row)
            for compared, ratio in found.items():
                ratios.setdefault(compared, {}).setdefault(name, {})[str(concurrency)] = ratio
            print_row(concurrency, row, found)
            figures = {"times": asdict(times), "prompts": options.prompts, **ratios, "cells": results}
            report.write(options.out, figures, "sglang", "torch")
        draw(cells, report.RESULTS / f"{options.out}{f'_{number}' if number else ''}.png")


if __name__ == "__main__":
    main()
