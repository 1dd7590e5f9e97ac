"""Count the forwards that second choices save in one forward, by how likely the planner takes them to be right.

    python benchmarks/second_choices.py      # writes benchmarks/results/second_choices.json

Without a server, by replay (`one_forward_replay.py`): of nano's answers to held-out tasks, with noise on its drafts for
three qualities, and to prompts of random tokens.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import report
from one_forward_replay import Count, Text, answers, odd_prompts, replay, task_prompts, with_noise

BUDGETS = (32, 64, 96)
CHANCES = (0.0, 0.2, 0.4, 0.6)


def measure(texts: Sequence[Text]) -> dict[str, Any]:
    """Return the forwards of each budget and chance."""
    found: dict[str, Any] = {}
    for width in BUDGETS:
        for chance in CHANCES:
            count = Count()
            for text in texts:
                replay(text, width, chance, count)
            base = found.setdefault(f"budget {width}, 0.0", {"forwards": count.forwards})["forwards"]
            figures = {
                "forwards": count.forwards,
                "tokens": count.tokens,
                "in rows": count.seconds,
                "found": count.found,
            }
            found[f"budget {width}, {chance}"] = {**figures, "saved": round(1 - count.forwards / base, 4)}
            sys.stdout.write(f"  budget {width:2d}, {chance}: {found[f'budget {width}, {chance}']}\n")
            sys.stdout.flush()
    return found


def main() -> None:
    """Print a line for each figure, and write all of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--noise", nargs="+", type=float, default=[0.0, 2.25, 3.2])
    parser.add_argument("--count", type=int, default=20, help="prompts of each kind")
    parser.add_argument("--out", default="second_choices", help="name of the file in benchmarks/results")
    options = parser.parse_args()
    cells: dict[str, Any] = {}
    for noise in options.noise:
        model = with_noise(noise)
        kinds = {f"tasks, noise {noise:g}": task_prompts} | ({} if noise else {"random tokens": odd_prompts})
        for name, prompts in kinds.items():
            sys.stdout.write(f"== {name}\n")
            cells[name] = measure(answers(model, prompts(options.count)))
            report.write(options.out, {"prompts": options.count, "cells": cells}, "torch")


if __name__ == "__main__":
    main()
