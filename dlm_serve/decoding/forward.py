"""How rows enter a forward, and what they emit after it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Layout:
    """How B rows enter one forward.

    Query i of a row sees its own new key j iff `j < new_len and (j <= i or i >= causal_len)`.
    """

    causal_len: torch.Tensor  # [B] int32: 0 is bidirectional, the width is causal
    new_len: torch.Tensor  # [B] int32: real tokens in the row
    kept_len: torch.Tensor  # [B] int32: the KV of so many tokens, from the first, is committed
    shift: torch.Tensor  # [B] int64: the logits at position i predict position i + shift
    lora_on: torch.Tensor  # [B] bool: the draft adapter counts

    def without_kv(self) -> Layout:
        """The same with no KV kept."""
        return replace(self, kept_len=torch.zeros_like(self.kept_len))


@dataclass(frozen=True)
class Emission:
    """Tokens that a step emits: the first `lens[i]` of row i, none where it is 0."""

    tokens: torch.Tensor  # [B, W] int64
    lens: torch.Tensor  # [B] int32

    @classmethod
    def empty(cls, num_rows: int, width: int, device: torch.device | str) -> Emission:
        """No token for any row."""
        tokens = torch.zeros(num_rows, width, dtype=torch.int64, device=device)
        return cls(tokens, torch.zeros(num_rows, dtype=torch.int32, device=device))

    def put(self, rows: torch.Tensor, part: Emission) -> Emission:
        """This with `part`, of no greater width, at `rows` [N] int64."""
        tokens, lens = self.tokens.clone(), self.lens.clone()
        tokens[rows, : part.tokens.shape[1]] = part.tokens
        lens[rows] = part.lens
        return Emission(tokens, lens)
