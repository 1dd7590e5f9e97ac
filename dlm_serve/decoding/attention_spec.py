"""How rows enter one forward: where each token stands, what it sees, and whose KV is kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from dlm_kernels.block_attention import Visible

from dlm_serve.decoding.rows import Rows


@dataclass(frozen=True)
class AttentionSpec:
    """How B rows of W tokens enter one forward.

    All but the number of committed tokens is given for each token, so that one row may hold any mix of chains and of
    groups that branch off them.
    """

    prefix_lens: torch.Tensor  # [B] int64: committed tokens that the row sees
    tokens: torch.Tensor  # [B, W] int64
    positions: torch.Tensor  # [B, W] int64
    kept: torch.Tensor  # [B, W] bool: the token's KV is kept, unless a later step overwrites what was rejected
    visible: Visible  # [B, W] int32 each: what the token sees of its own row
    shift: torch.Tensor  # [B, W] int64: the logits at position i predict position i + shift
    lora_on: torch.Tensor  # [B, W] bool: the draft adapter counts
    anchors: torch.Tensor  # [B, W] int32: see `one_forward.Layout`; the token itself in rows of other phases

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
        """Return the spec of contiguous `rows` behind `committed_lens` [B].

        Their first `causal_len` [B] tokens are causal, the others see the whole row. The KV of the first `kept_len` [B]
        is kept. `shift` and `lora_on` [B] hold for all tokens of a row.
        """
        starts = rows.starts(committed_lens)
        columns = rows.columns
        return cls(
            prefix_lens=starts,
            tokens=rows.tokens,
            positions=starts[:, None] + columns,
            kept=columns < kept_len[:, None],
            visible=Visible.of(causal_len, rows.new_len, rows.width),
            shift=shift[:, None].expand(-1, rows.width),
            lora_on=lora_on[:, None].expand(-1, rows.width),
            anchors=columns.int().expand_as(rows.tokens),
        )

    @property
    def predicted_positions(self) -> torch.Tensor:
        """Return the positions [B, W] int64 that the logits are about."""
        return self.positions + self.shift

    def where(self, condition: torch.Tensor, other: AttentionSpec) -> AttentionSpec:
        """Return, row by row, this spec where `condition` [B] bool holds, else `other`, of the same width."""
        columns = condition[:, None]
        return AttentionSpec(
            prefix_lens=torch.where(condition, self.prefix_lens, other.prefix_lens),
            tokens=torch.where(columns, self.tokens, other.tokens),
            positions=torch.where(columns, self.positions, other.positions),
            kept=torch.where(columns, self.kept, other.kept),
            visible=Visible(*(torch.where(columns, *pair) for pair in zip(self.visible, other.visible, strict=True))),
            shift=torch.where(columns, self.shift, other.shift),
            lora_on=torch.where(columns, self.lora_on, other.lora_on),
            anchors=torch.where(columns, self.anchors, other.anchors),
        )

    def keeping(self, rows: torch.Tensor) -> AttentionSpec:
        """Return the spec with KV kept only in the rows where `rows` [B] bool holds."""
        return replace(self, kept=self.kept & rows[:, None])
