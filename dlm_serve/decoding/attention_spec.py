"""How rows enter one forward: where each token stands, what it sees, and whose KV is kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from dlm_serve.decoding.rows import Rows


@dataclass(frozen=True)
class AttentionSpec:
    """How B rows of W tokens enter one forward.

    Position and kept KV are given for each token. What a token sees of its own row is given by two numbers a row:
    query i sees new key j iff `j < new_len and (j <= i or i >= causal_len)`, besides the `prefix_lens` committed
    tokens. A mask for groups of branches would replace the two by a range [lo, hi) of new keys for each query; it
    belongs here, and costs nothing but a kernel that reads it (`kernels/dlm_kernels/block_attention`).
    """

    prefix_lens: torch.Tensor  # [B] int64: committed tokens that the row sees
    positions: torch.Tensor  # [B, W] int64
    kept: torch.Tensor  # [B, W] bool: the token's KV is kept, unless a later step overwrites what was rejected
    causal_len: torch.Tensor  # [B] int32: 0 is bidirectional, the width is causal
    new_len: torch.Tensor  # [B] int32: real tokens in the row
    shift: torch.Tensor  # [B] int64: the logits at position i predict position i + shift
    lora_on: torch.Tensor  # [B] bool: the draft adapter counts

    @classmethod
    def of(
        cls,
        rows: Rows,
        committed_lens: torch.Tensor,
        *,
        causal_len: torch.Tensor,
        kept_len: torch.Tensor,
        shift: torch.Tensor,
        lora_on: torch.Tensor,
    ) -> AttentionSpec:
        """Return the spec of contiguous `rows` behind `committed_lens` [B], the KV of `kept_len` [B] tokens kept."""
        starts = rows.starts(committed_lens)
        columns = rows.columns
        return cls(
            prefix_lens=starts,
            positions=starts[:, None] + columns,
            kept=columns < kept_len[:, None],
            causal_len=causal_len,
            new_len=rows.new_len,
            shift=shift,
            lora_on=lora_on,
        )

    @property
    def predicted_positions(self) -> torch.Tensor:
        """Return the positions [B, W] int64 that the logits are about."""
        return self.positions + self.shift[:, None]

    def keeping(self, rows: torch.Tensor) -> AttentionSpec:
        """Return the spec with KV kept only in the rows where `rows` [B] bool holds."""
        return replace(self, kept=self.kept & rows[:, None])
