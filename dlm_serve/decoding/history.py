"""What a request's block looked like after each forward, for requests that ask for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from dlm_serve.decoding.rows import Rows

MOST_FORWARDS = 2048
"""Forwards of a request that are kept, its first ones."""


@dataclass(frozen=True)
class Snapshot:
    """Rows as a step left them, on their way to the host."""

    rows: torch.Tensor
    """[N, W + 2] int64: tokens, `new_len`, `num_emitted`. On the host, once the results of the step are."""

    @classmethod
    def of(cls, table: Rows, indices: torch.Tensor) -> Snapshot:
        """Copy the rows of `table` at `indices` [N] int64, without waiting for the device."""
        lens = (table.new_len[indices, None], table.num_emitted[indices, None])
        rows = torch.cat([table.tokens[indices], *lens], dim=1)
        if not rows.is_cuda:
            return cls(rows)
        host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
        return cls(host.copy_(rows, non_blocking=True))


@dataclass
class BlockHistory:
    """The blocks of a request after its forwards: where each starts in the answer, and its tokens, masks included."""

    forwards: list[tuple[int, list[int]]] = field(default_factory=list)
    _in_flight: deque[tuple[Snapshot, int]] = field(default_factory=deque)
    """Steps whose results are not known, with the request's row of each."""

    def add(self, start: int, tokens: Sequence[int]) -> None:
        """Note a forward behind which the block at position `start` of the answer has these tokens."""
        if len(self.forwards) < MOST_FORWARDS:
            self.forwards.append((start, list(tokens)))

    def launch(self, snapshot: Snapshot, row: int) -> None:
        """Note that a step was launched which left this row."""
        self._in_flight.append((snapshot, row))

    def settle(self, num_output: int) -> None:
        """Note that the results of the next step are known, with which the answer has `num_output` tokens."""
        snapshot, row = self._in_flight.popleft()
        *tokens, new_len, num_emitted = snapshot.rows[row].tolist()
        self.add(num_output - num_emitted, tokens[:new_len])

    def restart(self) -> None:
        """Forget steps in flight: the request was retracted, and their results are dropped."""
        self._in_flight.clear()
