"""Build the corpus and the tokenizer of the bundled model from open packages and synthetic tasks."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this subcommand to `parser`."""
    parser.add_argument("out", type=Path, help="folder for train.npz, heldout.npz and tokenizer/")
    parser.add_argument("--cache", type=Path, default=Path("corpus-cache"), help="where fetched packages lie")
    parser.add_argument("--examples-per-task", type=int, default=60_000)
    parser.add_argument("--vocab-size", type=int, default=2560)
    parser.add_argument("--max-length", type=int, default=4096, help="context length in tokens")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> None:
    """Build the corpus in the folder `args.out`."""
    from dlm_serve.training.corpus import build_corpus

    build_corpus(args.out, args.cache, args.examples_per_task, args.vocab_size, args.max_length, args.seed)
