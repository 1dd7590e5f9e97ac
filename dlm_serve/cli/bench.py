"""Measure how fast a running server answers real questions, in each decode mode and at several concurrencies.

Writes a JSON file and, beside it, a PNG.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dlm_serve.cli import add_server_arguments, positive
from dlm_serve.client import MODES, Client
from dlm_serve.errors import ConfigError
from dlm_serve.evaluation.load import MAX_NEW_TOKENS, Cell, Clients
from dlm_serve.evaluation.report import commit
from dlm_serve.training.tasks import TASKS

_EPILOG = """sglang.bench_serving works with this server too, but do not read its ITL (inter-token latency): on OpenAI's
routes it takes the time between two chunks of a stream for that between two tokens, and here a chunk holds all tokens
of a step, often dozens; with --backend sglang it divides that time by the tokens, which is a mean and no latency. How
many tokens a step decides depends on the text, so its random prompts say little. What it says of whole answers stands:
requests per second and end-to-end latency."""

Row = dict[str, dict[str, Any]]
"""Figures by mode."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this subcommand to `parser`."""
    parser.epilog = _EPILOG
    add_server_arguments(parser)
    modes = ("auto", *MODES)
    parser.add_argument("--modes", nargs="+", choices=modes, help="(auto, and all that the model has)")
    parser.add_argument(
        "--concurrency", nargs="+", type=positive, default=(1, 4, 16), metavar="N", help="requests at once (1 4 16)"
    )
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of each measurement (%(default)g)")
    parser.add_argument("--warm-up", type=float, default=2.0, metavar="S", help="before each (%(default)g)")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a question per line (those of synthetic tasks)")
    parser.add_argument(
        "--max-new-tokens", type=positive, default=MAX_NEW_TOKENS, metavar="N", help="per answer (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="the JSON file (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure, write the figures and print them."""
    client, console = Client(args.url, args.api_key), Console()
    modes = _modes(client, args.modes)
    about = client.about()
    prompts = [client.tokenize([{"role": "user", "content": text}]) for text in _questions(args.prompts)]
    request = {"sampling_params": {"max_new_tokens": args.max_new_tokens}}
    clients = Clients(args.url, prompts, request, client.headers)
    cells: dict[str, Row] = {}
    concurrencies = sorted(set(args.concurrency))
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("measurements", total=len(concurrencies) * len(modes))
        for concurrency in concurrencies:
            row = cells[str(concurrency)] = {}
            for mode in modes:
                cell = Cell()
                clients.measure(cell, {"mode": mode}, concurrency, args.seconds, args.warm_up)
                row[mode] = cell.summary()
                progress.advance(bar)
    header = {
        "commit": commit(),
        "versions": {"dlm-serve": version("dlm-serve"), "sglang": about["version"]},
        "model_path": about.get("model_path"),
        "device": about.get("device"),
        "seconds": args.seconds,
        "max_new_tokens": args.max_new_tokens,
    }
    args.out.write_text(json.dumps({**header, "cells": cells}, indent=2) + "\n")
    picture = args.out.with_suffix(".png")
    from dlm_serve.evaluation.load_plot import draw  # it loads matplotlib

    draw(cells, picture)
    console.print(_table(cells))
    console.print(f"{args.out} and {picture}", highlight=False, soft_wrap=True)


def _modes(client: Client, asked: list[str] | None) -> tuple[str, ...]:
    """Return the modes to measure. Raises ConfigError for one that the model lacks."""
    if asked is None:
        return ("auto", *client.modes())
    offered = client.modes([mode for mode in asked if mode != "auto"])
    return ("auto", *offered) if "auto" in asked else offered


def _questions(file: Path | None) -> list[str]:
    """Return the questions to ask. Raises ConfigError if there are none in `file`."""
    if file is None:
        return [example.prompt for task in TASKS.values() for example in task.examples("heldout", 8, seed=0)]
    try:
        lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("--prompts", str(file), f"cannot be read ({error})", "give a text file") from None
    if not lines:
        raise ConfigError("--prompts", str(file), "is empty", "write a question on each line")
    return lines


def _table(cells: dict[str, Row]) -> Table:
    """Return a table of the figures, a row for each concurrency and mode."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))  # fits 80 columns
    table.add_column("at\nonce", justify="right")
    table.add_column("mode", no_wrap=True)
    columns = {
        "tokens\nper s": "tokens_per_s",
        "tokens/\nforward": "tokens_per_forward",
        "accept.\nlength": "acceptance_length",
        "seconds\nmedian": "seconds_median",
        "seconds\n95%": "seconds_p95",
        "answers": "requests",
    }
    for name in columns:
        table.add_column(name, justify="right")
    for concurrency, row in cells.items():
        for number, (mode, figures) in enumerate(row.items()):
            values = (_figure(figures[name]) for name in columns.values())
            table.add_row("" if number else concurrency, mode, *values, end_section=number == len(row) - 1)
    return table


def _figure(value: float | None) -> str:
    """Return `value` with about three digits that count."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
