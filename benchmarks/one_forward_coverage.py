"""Compare simulated with measured tokens per forward of speculation in one forward, and count what groups cover.

    python benchmarks/one_forward_coverage.py      # writes benchmarks/results/one_forward_coverage.json

On nano in float32, with noise on its drafts for three qualities. Measured by decoding (`training.reference_decoder`,
the functions of the engine without its cache), and simulated twice: by replay, and as the sum of what each plan
expects by the confidences of its draft. A stop is covered if a group stood there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import report
from one_forward_replay import MAX_NEW_TOKENS, Count, Text, answers, replay, task_prompts, with_noise

from dlm_serve.decoding import Phase, RowOptions
from dlm_serve.decoding.one_forward import LONGEST_CHAIN
from dlm_serve.decoding.one_forward.plan import SECOND_IS_RIGHT
from dlm_serve.training.reference_decoder import decode
from dlm_serve.training.tokenizer import EOS_ID

BUDGETS = (32, 64, 96)


def compare(texts: Sequence[Text], width: int) -> dict[str, float]:
    """Return what `texts` took in forwards of `width` tokens, and what was expected."""
    count, options = Count(), RowOptions(Phase.SPECULATE, LONGEST_CHAIN, stop_ids=[EOS_ID])
    for text in texts:
        replay(text, width, SECOND_IS_RIGHT, count)
    found = decode(texts[0].model, [text.ids[: text.num_prompt] for text in texts], options, MAX_NEW_TOKENS, width)
    assert [answer.ids for answer in found] == [text.ids[text.num_prompt :] for text in texts]
    measured = count.tokens / sum(answer.nfe for answer in found)
    replayed, expected = count.tokens / count.forwards, count.expected / count.forwards
    return {
        "measured": round(measured, 3),
        "replayed": round(replayed, 3),
        "replayed over measured": round(replayed / measured, 4),
        "expected": round(expected, 3),
        "expected over measured": round(expected / measured, 4),
        "covered": round(count.covered / count.forwards, 4),
        "second choices in rows": round(count.seconds / count.forwards, 3),
        "found": round(count.found / count.forwards, 4),
    }


def main() -> None:
    """Print a line for each budget, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--noise", nargs="+", type=float, default=[0.0, 2.25, 3.2])
    parser.add_argument("--count", type=int, default=15, help="prompts")
    parser.add_argument("--out", default="one_forward_coverage", help="name of the file in benchmarks/results")
    options = parser.parse_args()
    cells: dict[str, Any] = {}
    for noise in options.noise:
        texts = answers(with_noise(noise), task_prompts(options.count))
        for width in BUDGETS:
            name = f"noise {noise:g}, budget {width}"
            cells[name] = compare(texts, width)
            sys.stdout.write(f"{name:24} {cells[name]}\n")
            sys.stdout.flush()
            report.write(options.out, {"prompts": options.count, "cells": cells}, "torch")


if __name__ == "__main__":
    main()
