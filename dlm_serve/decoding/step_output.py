"""What a step emits."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StepOutput:
    """Tokens that a step emits: the first `lens[i]` of row i, none where it is 0."""

    tokens: torch.Tensor  # [B, W] int64
    lens: torch.Tensor  # [B] int32

    @classmethod
    def empty(cls, num_rows: int, width: int, device: torch.device | str) -> StepOutput:
        """Return an output without a token for any row."""
        tokens = torch.zeros(num_rows, width, dtype=torch.int64, device=device)
        return cls(tokens, torch.zeros(num_rows, dtype=torch.int32, device=device))

    def where(self, condition: torch.Tensor, other: StepOutput) -> StepOutput:
        """Return, row by row, this output where `condition` [B] bool holds, else `other`, of the same width."""
        tokens = torch.where(condition[:, None], self.tokens, other.tokens)
        return StepOutput(tokens, torch.where(condition, self.lens, other.lens))

    def put_(self, rows: torch.Tensor, part: StepOutput) -> None:
        """Write `part`, of no greater width, into the rows `rows` [N] int64."""
        self.tokens[:, : part.tokens.shape[1]].index_copy_(0, rows, part.tokens)
        self.lens.index_copy_(0, rows, part.lens)
