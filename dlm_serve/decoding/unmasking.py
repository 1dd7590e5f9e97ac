"""The algorithms by which BD3-LM fills the masks of a block.

`first_hitting` is its authors' sampler: one mask per forward, drawn uniformly from those that are left (reference:
`_ddpm_caching_update` of `diffusion.py`). The others go by confidence, as other families do.
"""

from __future__ import annotations

from enum import StrEnum


class Unmasking(StrEnum):
    """Which masks of a block a forward fills."""

    FIRST_HITTING = "first_hitting"
    """As many at random as the schedule of steps says: one, if it does not."""
    THRESHOLD = "threshold"
    """All that are sure enough, and always the surest."""
    CONFIDENCE = "confidence"
    """As many of the surest as the schedule says: one, if it does not."""
