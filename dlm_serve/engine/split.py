"""Which rows of a step share a block forward, and which autoregressive rows take a decode forward of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlm_serve.decoding import Mode, Policy
from dlm_serve.plan import DecodePlan

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
    decided_rows: tuple[int, ...] = ()
    """Rows that need no forward."""

    @classmethod
    def of(cls, plans: Sequence[DecodePlan], policy: Policy, decided: Sequence[int] = ()) -> Split:
        """The cheaper way: autoregressive rows padded into the block forward, or in a second forward.

        The rows `decided` take neither. Beside them, and beside drafts, nothing is padded: a step of several forwards
        samples autoregressive rows in the decode forward alone.
        """
        skipped = set(decided)
        live = [i for i in range(len(plans)) if i not in skipped]
        drafts = tuple(i for i in live if plans[i].verifies_windows)
        alone = tuple(i for i in live if plans[i].mode is Mode.AUTOREGRESSIVE)
        rest = tuple(i for i in live if not (plans[i].verifies_windows or plans[i].mode is Mode.AUTOREGRESSIVE))
        width = max((policy.row_width(plans[i].block_length) for i in rest), default=1)
        together = _cost(len(live) * width)
        apart = _cost(len(alone)) + _cost(len(rest) * width)
        if drafts or decided or not rest or (alone and apart < together):
            return cls(alone, rest, width, drafts, tuple(decided))
        return cls((), tuple(live), width)


def _cost(num_tokens: int) -> float:
    """The time of one forward, in units of reading the weights."""
    return max(1.0, num_tokens / FREE_TOKENS)
