"""How a model family decodes, in the terms that `layout` and `advance` are written in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from dlm_serve.decoding.sampling import Nucleus


class Prefill(StrEnum):
    """What a token of the prompt sees when the prompt is encoded."""

    CAUSAL = "causal"
    BIDIRECTIONAL = "bidirectional"
    """The whole prompt."""
    BLOCK_CAUSAL = "block_causal"
    """Its own block and all before it."""


class Commit(StrEnum):
    """How the KV of decided tokens comes about."""

    CAUSAL = "causal"
    """A causal forward over the block; its last prediction is the first token of the next block."""
    BLOCK = "block"
    """A forward over the block that is bidirectional inside it and predicts nothing."""
    FUSED = "fused"
    """Causally, by the forward that predicts what follows them."""


class Sharing(StrEnum):
    """Which KV two requests with the same first tokens may share."""

    PREFIX = "prefix"
    """That of any common prefix."""
    BLOCKS = "blocks"
    """That of whole blocks of the grid that is anchored at position 0."""
    NONE = "none"


@dataclass(frozen=True)
class Policy:
    """What differs between families from the first forward of a request to its last."""

    prefill: Prefill
    commit: Commit
    sharing: Sharing
    mask_in_denominator: bool = True
    """Whether confidences count the mask's share of the probability, which no token can take."""
    nucleus: Nucleus = Nucleus.REACHING
    """What top-p means."""
    stops_in_blocks: bool = True
    """Whether a block is settled as soon as all tokens up to a stop id are; otherwise it always runs whole."""
    shifts_logits: bool = False
    """Whether a forward over masks predicts the token behind each position, and not the one at it."""
    is_anchored: bool = False
    """Whether blocks lie on a grid from position 0; otherwise the first one starts where the prompt ends."""

    @property
    def is_seeded(self) -> bool:
        """Whether each block starts with a token that the forward before it predicted."""
        return self.commit is Commit.CAUSAL

    @property
    def refines(self) -> bool:
        """Whether a block is refined in several forwards, rather than cut where confidence ends."""
        return self.commit is not Commit.FUSED

    @property
    def decodes_tokens(self) -> bool:
        """Whether steps of single tokens, as of SGLang's own decode, can occur."""
        return self.commit is not Commit.BLOCK

    def usable_widths(self, block_size: int, widths: Sequence[int]) -> list[int]:
        """Those of the `widths` that rows can take; blocks on a grid are all of `block_size`."""
        return [min(width for width in widths if width >= block_size)] if self.is_anchored else sorted(widths)

    def row_width(self, block_length: int) -> int:
        """The most tokens of a row with blocks of `block_length`: where commits are fused, a block and the next one."""
        return block_length if self.refines else 2 * block_length

    def longest_block(self, block_size: int, max_width: int) -> int:
        """The longest blocks in rows of at most `max_width` tokens, of a model that was trained with `block_size`."""
        return max_width if self.refines else min(2 * block_size, max_width // 2)
