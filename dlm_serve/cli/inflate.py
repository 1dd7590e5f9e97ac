"""Write the bundled model in the shape of a large one, to measure full-size speed with answers that can be checked.

The new checkpoint produces the tokens of the small model and reads as many bytes as the large one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dlm_serve.bundled import FOLDER as BUNDLED_MODEL


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this subcommand to `parser`."""
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder to write to, new or empty")
    parser.add_argument("--like", required=True, help="3b, 8b or the path of a config.json")
    parser.add_argument("--model", default=str(BUNDLED_MODEL), metavar="PATH", help="the small model's folder")


def run(args: argparse.Namespace) -> None:
    """Write the large checkpoint to the folder `args.out`."""
    from dlm_serve.inflation import inflate  # it loads torch

    num_bytes = inflate(args.model, args.like, args.out)
    sys.stdout.write(f"{num_bytes / 1e9:.1f} GB of weights in {args.out}\n")
