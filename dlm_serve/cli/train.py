"""Train a model by a recipe: autoregressively, then converted to diffusion, then with its draft adapter."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be given on the command line."""
    parser.add_argument("--config", type=Path, required=True, help="YAML file; dlm_serve/training/nano.yaml is one")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the output folder")


def run(args: argparse.Namespace) -> None:
    """Train."""
    from dlm_serve.training.config import TrainingConfig
    from dlm_serve.training.trainer import train

    train(TrainingConfig.load(args.config), resume=args.resume)
