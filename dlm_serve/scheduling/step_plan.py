"""Plan a step: which rows share a block forward, and which take another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlm_serve.decoding import Commit, Forward, RequestState
from dlm_serve.routing.costs import CostTable, StepShape


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

    @classmethod
    def of(cls, states: Sequence[RequestState], commit: Commit, costs: CostTable) -> StepPlan:
        """Plan a step of the requests `states`.

        Autoregressive rows are padded into the block forward or take a decode forward, whichever `costs` less. Beside
        rows that verify draft windows nothing is padded: a step of several forwards samples autoregressive rows in
        the decode forward alone. Rows that speculate in one forward are as wide as graphs are for so many.
        """
        by_forward: dict[Forward, list[int]] = {forward: [] for forward in Forward}
        for i, state in enumerate(states):
            by_forward[commit.forward_of(state)].append(i)
        decode, block, windows = (
            tuple(by_forward[forward]) for forward in (Forward.DECODE, Forward.BLOCK, Forward.DRAFT_WINDOWS)
        )
        width = max((commit.row_width(states[i].row_length) for i in block), default=1)
        least = max((commit.row_width(states[i].least_row_length) for i in block), default=1)
        width = costs.widest(len(block), width, least)
        if not decode or not block or windows:
            return cls(decode, block, width, False, windows)
        together = costs.ms(StepShape(num_blocks=len(states), width=width))
        apart = costs.ms(StepShape(num_decode=len(decode), num_blocks=len(block), width=width))
        return cls(decode, block, width) if apart < together else cls((), tuple(range(len(states))), width, True)
