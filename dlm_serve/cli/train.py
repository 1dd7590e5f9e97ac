"""Train a model from a recipe: autoregressively, then converted to diffusion, then with its draft adapter."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this subcommand to `parser`."""
    parser.add_argument("--config", type=Path, required=True, help="YAML file; dlm_serve/training/nano.yaml is one")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the output folder")


def run(args: argparse.Namespace) -> None:
    """Train the model that the recipe describes."""
    from dlm_serve.training.config import TrainingConfig
    from dlm_serve.training.trainer import train

    train(TrainingConfig.load(args.config), resume=args.resume)
