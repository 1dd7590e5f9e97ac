"""How tokens are drawn."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

import torch

HOTTEST = 1e30
"""The highest temperature; higher ones count as this one, so that neither it nor its inverse vanishes in float32."""


class Nucleus(StrEnum):
    """Which tokens top-p keeps, of those in descending order of their probabilities. Ties are kept or dropped together.

    Whatever p is, the most likely token is kept.
    """

    REACHING = "reaching"
    """As many as it takes to reach p."""
    WITHIN = "within"
    """As many as stay within p (reference: `_nucleus_sample` of BD3-LM's `diffusion.py`)."""


@dataclass(frozen=True)
class Sampling:
    """How the tokens of R requests are drawn. `top_k` 1 means greedily, whatever the other fields say.

    Top-k, top-p and min-p are each taken on the whole distribution, and a token must be in all three sets. Where the
    last token of a top-k set has ties, they are kept, too.
    """

    temperature: torch.Tensor  # [R] float32, > 0
    top_k: torch.Tensor  # [R] int32, >= 1
    top_p: torch.Tensor  # [R] float32, in [0, 1]
    min_p: torch.Tensor  # [R] float32, in [0, 1]
    seed: torch.Tensor  # [R] int64

    def select(self, rows: slice | torch.Tensor) -> Sampling:
        """Return the rows `rows`, a slice or [M] int64."""
        return Sampling(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})
