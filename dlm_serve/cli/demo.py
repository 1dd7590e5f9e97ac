"""Ask a running server the same questions in each decode mode and compare the answers side by side."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dlm_serve.cli import add_server_arguments, positive
from dlm_serve.client import MODES, Answer, Client, printable
from dlm_serve.training.tasks import TASKS

_TASKS = ("arithmetic", "sorting", "json", "python")
"""Tasks whose first held-out question is asked if no prompt is given."""

_STYLES = ("bold cyan", "yellow")
"""Alternating styles of tokens that arrived together."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this subcommand to `parser`."""
    add_server_arguments(parser)
    parser.add_argument("--modes", nargs="+", choices=MODES, help="to compare with the first (all that the model has)")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="a question of yours; may be repeated")
    parser.add_argument("--max-new-tokens", type=positive, default=160, metavar="N", help="per answer (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Ask every prompt in every mode and show the answers."""
    console, client = Console(), Client(args.url, args.api_key)
    modes = client.modes(args.modes)
    console.print("Tokens of one colour came together. Modes run one after the other.\n")
    prompts = args.prompt or [next(TASKS[name].examples("heldout", 1, seed=0)).prompt for name in _TASKS]
    answers = [ask(console, client, prompt, modes, args.max_new_tokens) for prompt in prompts]
    if len(modes) > 1:
        console.print(verdict(answers), soft_wrap=True)


def ask(console: Console, client: Client, prompt: str, modes: Sequence[str], max_new_tokens: int) -> dict[str, Answer]:
    """Return the answers to `prompt` by mode, showing them while they stream."""
    prompt_ids = client.tokenize([{"role": "user", "content": prompt}])
    client.generate(prompt_ids, {"mode": modes[0]}, 1)  # now the prefix cache holds the prompt, for all modes alike
    growing: dict[str, list[Answer]] = {mode: [] for mode in modes}

    def table() -> Table:
        return _table(prompt, growing)

    with Live(get_renderable=table, console=console, transient=True, refresh_per_second=12):
        for mode, parts in growing.items():
            parts.extend(client.stream(prompt_ids, {"mode": mode}, max_new_tokens))
    console.print(table())
    return {mode: parts[-1] for mode, parts in growing.items()}


def verdict(answers: Sequence[Mapping[str, Answer]]) -> str:
    """Return one line that compares the modes with the first. `answers` holds the answers by mode, for each prompt."""
    reference, *others = answers[0]
    forwards = {mode: sum(by_mode[mode].statistics.nfe for by_mode in answers) for mode in answers[0]}
    seen = []
    for mode in others:
        equal = sum(by_mode[mode].token_ids == by_mode[reference].token_ids for by_mode in answers)
        seen.append(f"{mode}: {equal} of {len(answers)} the same, {_compare(forwards[mode], forwards[reference])}")
    return f"Against the answers of {reference}, {'; '.join(seen)}."


def _compare(forwards: int, reference: int) -> str:
    """Return how many times fewer forward passes there were, if both took any."""
    if not forwards or not reference:
        return f"{forwards} forward passes against {reference}"
    if forwards > reference:
        return f"{forwards / reference:.1f} times more forward passes"
    return f"{reference / forwards:.1f} times fewer forward passes"


def _table(prompt: str, growing: Mapping[str, Sequence[Answer]]) -> Table:
    """Return a table of the answers so far, one column per mode."""
    table = Table(title=Text(prompt), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, expand=True)
    table.add_column("")
    for mode in growing:
        table.add_column(mode, ratio=1, overflow="fold")
    last = [parts[-1] if parts else None for parts in growing.values()]
    table.add_row("answer", *map(_coloured, growing.values()), end_section=True)
    table.add_row("forward passes", *(str(a.statistics.nfe) if a else "" for a in last))
    table.add_row("tokens per forward", *(_figure(a.statistics.tokens_per_forward, 2) if a else "" for a in last))
    table.add_row("seconds", *(_figure(a.seconds, 2) if a else "" for a in last))
    return table


def _coloured(parts: Sequence[Answer]) -> Text:
    """Return the newest text, where each part that arrived has another colour than the one before."""
    text, start = Text(), 0
    for number, part in enumerate(parts):
        text.append(printable(parts[-1].text[start : len(part.text)]), style=_STYLES[number % len(_STYLES)])
        start = len(part.text)
    return text


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
