"""When a sequence of BD3-LM ends by itself: the rule of its authors' sampler.

Reference: `_check_stop_conds` and `_compute_entropy` of `diffusion.py`, for sequences of variable length.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum


class StopRule(StrEnum):
    """What ends a request before its length does."""

    EOS = "eos"
    """Its first end-of-sequence id."""
    UPSTREAM = "upstream"
    """`ended_length`, looked at after each block."""


WINDOW = 256
"""Tokens whose entropy counts; sequences that are no longer are not checked."""

MIN_ENTROPY = 4.0
"""Nats, below which those tokens are taken for a degenerate repetition."""


def entropy(ids: Sequence[int]) -> float:
    """Return the entropy, in nats, of the histogram of the last `WINDOW` of `ids`."""
    counts = Counter(ids[-WINDOW:]).values()
    total = sum(counts)
    return -sum(count / total * math.log(count / total) for count in counts)


def is_degenerate(ids: Sequence[int]) -> bool:
    """Return whether `ids`, prompt and answer, are long enough to be checked and end in a repetition."""
    return len(ids) > WINDOW and entropy(ids) < MIN_ENTROPY


def ended_length(ids: Sequence[int], eos_id: int) -> int | None:
    """Return how much of `ids`, the whole sequence with its prompt, remains if it ends here; None if it goes on.

    A degenerate end is cut off; else the second end-of-sequence id, the one that began the sequence counted, is
    the last token.
    """
    if len(ids) <= WINDOW:
        return None
    if is_degenerate(ids):
        return len(ids) - WINDOW
    ends = [i for i, token_id in enumerate(ids) if token_id == eos_id]
    return ends[1] + 1 if len(ends) > 1 else None
