"""Which rows of a step share a block forward, and which autoregressive rows take a decode forward of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlm_serve.config import DecodePlan
from dlm_serve.decoding import Mode

FREE_TOKENS = 192
"""Tokens of one forward whose arithmetic takes as long as reading the weights; more cost in proportion.

From the times of an 8B model's matrix products in bf16 on an H200.
"""


@dataclass(frozen=True)
class Split:
    """The rows of one step by the forward that they take, as positions in the batch."""

    decode_rows: tuple[int, ...]
    """Rows of a decode forward, one token each."""
    block_rows: tuple[int, ...]
    """Rows of a block forward."""
    width: int
    """Tokens of a row of the block forward: those of its longest."""
    draft_rows: tuple[int, ...] = ()
    """Rows whose drafts are verified by several rows each, in a forward of their own."""

    @classmethod
    def of(cls, plans: Sequence[DecodePlan]) -> Split:
        """The cheaper way: autoregressive rows padded into the block forward, or in a second forward."""
        drafts = tuple(i for i, plan in enumerate(plans) if plan.verifies_windows)
        alone = tuple(i for i, plan in enumerate(plans) if plan.mode is Mode.AUTOREGRESSIVE)
        rest = tuple(i for i, plan in enumerate(plans) if plan.mode is not Mode.AUTOREGRESSIVE and i not in drafts)
        width = max((plan.row_width for plan in plans), default=1)
        if drafts:
            return cls(alone, rest, width, drafts)
        together = _cost(len(plans) * width)
        apart = _cost(len(alone)) + _cost(len(rest) * width)
        if not rest or (alone and apart < together):
            return cls(alone, rest, width)
        return cls((), tuple(range(len(plans))), width)


def _cost(num_tokens: int) -> float:
    """The time of one forward, in units of reading the weights."""
    return max(1.0, num_tokens / FREE_TOKENS)
