"""The block with which an EXTEND call starts, where the prefill does not predict the request's next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FirstBlock:
    """The block that an EXTEND call denoises.

    Nothing but its tokens survives the retraction of a request. A block that was emitted in part starts over as it
    started before, and so ends the same, unless arithmetic depends on what shares a forward.
    """

    start: int
    """Its first position."""
    emitted: list[int]
    """Its first tokens, which the client has already."""
    num_given: int
    """How many of these are not to be found again: the end of a prompt, or a pending token."""

    @property
    def given(self) -> list[int]:
        """Return the tokens that are not to be found."""
        return self.emitted[: self.num_given]

    def all_given(self) -> FirstBlock:
        """Return the same block with nothing to be found again."""
        return FirstBlock(self.start, self.emitted, len(self.emitted))

    def goes_on_as(self, tokens: Sequence[int]) -> bool:
        """Return whether `tokens`, those found for the block, are the emitted ones and more."""
        return len(tokens) > len(self.emitted) and list(tokens[: len(self.emitted)]) == self.emitted
