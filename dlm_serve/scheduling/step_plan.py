"""Plan a step: which rows share a block forward, and which take another forward or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlm_serve.decoding import Commit, Forward, RequestState

FREE_TOKENS = 192
"""Tokens of one forward whose arithmetic takes as long as reading the weights; more cost in proportion.

From the times of an 8B model's matrix products in bf16 on an H200.
"""


@dataclass(frozen=True)
class StepPlan:
    """The rows of one step by the forward that they take, as positions in the batch."""

    decode_rows: tuple[int, ...]
    """Rows of a decode forward, one token each."""
    block_rows: tuple[int, ...]
    """Rows of a block forward."""
    width: int
    """Tokens of a row of the block forward: those of its longest."""
    padded_decode: bool = False
    """Whether there are autoregressive rows among `block_rows`, padded to its width."""
    window_rows: tuple[int, ...] = ()
    """Requests whose drafts are verified by several rows each, in a forward of their own."""
    flush_rows: tuple[int, ...] = ()
    """Rows that need no forward."""

    @classmethod
    def of(cls, states: Sequence[RequestState], commit: Commit) -> StepPlan:
        """Plan a step of the requests `states`.

        Autoregressive rows are padded into the block forward or take a decode forward, whichever is cheaper. Beside
        rows that flush or verify draft windows nothing is padded: a step of several forwards samples autoregressive
        rows in the decode forward alone.
        """
        by_forward: dict[Forward, list[int]] = {forward: [] for forward in Forward}
        for i, state in enumerate(states):
            by_forward[commit.forward_of(state)].append(i)
        decode, block, windows, flush = (
            tuple(by_forward[forward])
            for forward in (Forward.DECODE, Forward.BLOCK, Forward.DRAFT_WINDOWS, Forward.FLUSH)
        )
        width = max((commit.row_width(states[i].current.block_length) for i in block), default=1)
        together = _cost((len(decode) + len(block)) * width)
        apart = _cost(len(decode)) + _cost(len(block) * width)
        if not decode or not block or windows or flush or apart < together:
            return cls(decode, block, width, False, windows, flush)
        return cls((), tuple(range(len(states))), width, True)


def _cost(num_tokens: int) -> float:
    """Return the time of one forward, in units of reading the weights."""
    return max(1.0, num_tokens / FREE_TOKENS)
