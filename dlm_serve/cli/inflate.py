"""Write the bundled model in the shape of a large one, to measure full-size speed with answers that can be checked.

The new checkpoint produces the tokens of the small model and reads as many bytes as the large one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from dlm_serve.bundled import FOLDER as BUNDLED_MODEL


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this subcommand to `parser`."""
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder to write to, new or empty")
    parser.add_argument("--like", required=True, help="3b, 8b or the path of a config.json")
    parser.add_argument("--model", default=str(BUNDLED_MODEL), metavar="PATH", help="the small model's folder")
    parser.add_argument(
        "--draft-noise",
        type=float,
        default=0.0,
        metavar="S",
        help="standard deviations of noise in the draft adapter: the more, the fewer drafts are accepted (%(default)s)",
    )
    parser.add_argument(
        "--adapter-only", action="store_true", help="write the draft adapter alone, for weights that exist already"
    )


def run(args: argparse.Namespace) -> None:
    """Write the large checkpoint, or its draft adapter alone, to the folder `args.out`."""
    from dlm_serve.inflation import inflate, inflate_adapter  # they load torch

    if args.adapter_only:
        num_bytes = inflate_adapter(args.model, args.like, args.out, args.draft_noise)
    else:
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("shards", total=None)

            def show(done: int, total: int) -> None:
                progress.update(bar, completed=done, total=total)

            num_bytes = inflate(args.model, args.like, args.out, args.draft_noise, show)
    sys.stdout.write(f"{num_bytes / 1e9:.2f} GB of weights in {args.out}\n")
