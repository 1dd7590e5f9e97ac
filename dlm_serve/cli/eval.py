"""Measure a running server on held-out questions: exact match against tokens per forward, in each decode mode.

Writes a JSON file and, beside it, a PNG.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dlm_serve.cli import add_server_arguments, positive
from dlm_serve.client import MODES, Client
from dlm_serve.evaluation.report import Plan, Report, Result, evaluate
from dlm_serve.training.tasks import TASKS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this subcommand to `parser`."""
    add_server_arguments(parser)
    parser.add_argument("--modes", nargs="+", choices=MODES, help="(all that the model has)")
    parser.add_argument(
        "--thresholds", nargs="+", type=float, default=(0.5, 0.7, 0.9), metavar="P", help="of diffusion (%(default)s)"
    )
    parser.add_argument(
        "--algorithm",
        metavar="NAME",
        help="of diffusion (one that knows thresholds)",
    )
    parser.add_argument("--count", type=positive, default=50, metavar="N", help="questions per task (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of their choice (%(default)s)")
    parser.add_argument("--max-new-tokens", type=positive, default=256, metavar="N", help="per answer (%(default)s)")
    parser.add_argument("--concurrency", type=positive, default=8, metavar="N", help="answers at a time (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("eval.json"), help="the JSON file (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure, write the report and print its figures."""
    client = Client(args.url, args.api_key)
    plan = Plan(
        modes=client.modes(args.modes),
        thresholds=tuple(args.thresholds),
        algorithm=args.algorithm or client.threshold_algorithm(),
        count=args.count,
        seed=args.seed,
        max_new_tokens=args.max_new_tokens,
        concurrency=args.concurrency,
    )
    console = Console()
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("answers", total=None)
        report = evaluate(
            client,
            TASKS.values(),
            plan,
            lambda done, total: progress.update(bar, completed=done, total=total),
        )
    report.save(args.out)
    picture = args.out.with_suffix(".png")
    _draw(report, picture)
    console.print(_summary(report), _by_task(report.results))
    console.print(f"{args.out} and {picture}", highlight=False, soft_wrap=True)


def _draw(report: Report, picture: Path) -> None:
    from dlm_serve.evaluation.plot import draw  # it loads matplotlib

    draw(report, picture)


def _summary(report: Report) -> Table:
    """Return a table of the figures of each setting."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("setting", no_wrap=True)
    for name in ("exact\nmatch", "forward\npasses", "tokens/\nforward", "accept.\nlength", "as AR", "cut"):
        table.add_column(name, justify="right")
    for result in report.results:
        figures, equal = result.figures, result.equal_to_autoregressive
        table.add_row(
            str(result.setting),
            f"{figures.accuracy:.1%}",
            f"{figures.forward_passes:.1f}",
            _figure(figures.tokens_per_forward),
            _figure(figures.acceptance_length),
            "-" if equal is None else f"{equal} of {figures.answers}",
            str(figures.cut),
        )
    return table


def _by_task(results: Sequence[Result]) -> Table:
    """Return a table of the exact match of each task."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("exact match")
    for result in results:
        table.add_column(str(result.setting).replace(" ", "\n").replace("_", "_\n"), justify="right", overflow="fold")
    for name in results[0].tasks:
        table.add_row(name, *(f"{result.tasks[name].accuracy:.1%}" for result in results))
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
