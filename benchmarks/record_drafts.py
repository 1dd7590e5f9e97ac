"""Record what nano drafts behind every token of its answers, for `router_sim.py`. Needs no GPU.

    python benchmarks/record_drafts.py [NAME ...]      # writes benchmarks/drafts/NAME.npz, in some minutes each

The prompts are those of `router.py`, and answers the autoregressive ones in float32; drafts come from the draft adapter
with so much noise on it. Answers of one token are left out: the prefill ends them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from one_forward_replay import answers, with_noise
from prompts import long_prompts, mixed_prompts
from recorded_drafts import MOST_NEW_TOKENS, NUM_MASKS, RecordedText, save


class Recording(NamedTuple):
    """What a file holds."""

    prompts: Callable[[], list[list[int]]]
    num_prompts: int
    noise: float
    """On the draft adapter, in standard deviations of its weights."""


RECORDINGS = {
    "easy": Recording(long_prompts, 16, 0.0),
    "medium": Recording(long_prompts, 16, 2.6),
    "hard": Recording(long_prompts, 16, 3.2),
    "mixed": Recording(mixed_prompts, 32, 0.0),
}
"""By the quality of their drafts; in `mixed` prompts of tasks and of random tokens take turns."""


def record(recording: Recording) -> list[RecordedText]:
    """Return the answers, and what was drafted behind each of their tokens but the last."""
    prompts = recording.prompts()[: recording.num_prompts]
    texts = answers(with_noise(recording.noise), prompts, MOST_NEW_TOKENS)
    return [
        RecordedText(
            text.ids,
            text.num_prompt,
            [text.draft(anchor, NUM_MASKS) for anchor in range(text.num_prompt, len(text.ids) - 1)],
        )
        for text in texts
        if len(text.ids) > text.num_prompt + 1
    ]


def main() -> None:
    """Print a line for each file that is written."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=list(RECORDINGS), metavar="NAME", help=", ".join(RECORDINGS))
    torch.set_num_threads(1)
    for name in parser.parse_args().names:
        texts = record(RECORDINGS[name])
        save(name, texts)
        sys.stdout.write(f"{name}: {len(texts)} answers, {sum(len(text.drafts) for text in texts)} drafts\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
