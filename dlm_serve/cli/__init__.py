"""Run the command `dlm-serve`.

Each module here is a subcommand: `add_arguments` declares its arguments, `run` runs it, and the first line of its
docstring is its help text. Only the module of the requested subcommand is imported.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from dlm_serve.errors import DlmServeError, InvalidValueError

INTERRUPTED = 130
"""Exit status after Ctrl-C, as in shells."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`. Return the exit status: 2 for an invalid value, 1 for any other failure."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser(argv[0] if argv else None).parse_args(argv)
    try:
        return args.run(args) or 0
    except DlmServeError as error:
        sys.stderr.write(f"dlm-serve {args.command}: {error}\n")
        return 2 if isinstance(error, InvalidValueError) else 1
    except KeyboardInterrupt:
        return INTERRUPTED


def commands() -> list[str]:
    """Return the names of all subcommands."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def positive(text: str) -> int:
    """Return an argument as an integer of at least 1. Raises ArgumentTypeError for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Add to `parser` where the server is, and its key."""
    from dlm_serve.client import API_KEY_VARIABLE, DEFAULT_URL

    parser.add_argument("--url", default=DEFAULT_URL, help="of the server (%(default)s)")
    parser.add_argument("--api-key", metavar="KEY", help=f"of the server, if it has one (${API_KEY_VARIABLE})")


def _parser(asked: str | None) -> argparse.ArgumentParser:
    """Return a parser that knows all subcommands by name and help, and the arguments of the one called `asked`."""
    parser = argparse.ArgumentParser("dlm-serve", description="Tools beside a server of diffusion language models.")
    parser.add_argument("--version", action="version", version=version("dlm-serve"))
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in commands():
        help_line = _summary(name)
        subparser = subparsers.add_parser(name, help=help_line, description=help_line)
        if name == asked:
            module = importlib.import_module(f"{__name__}.{name}")
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def _summary(name: str) -> str:
    """Return the first line of a subcommand's docstring without importing the module."""
    source = (Path(__file__).parent / f"{name}.py").read_text()
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
