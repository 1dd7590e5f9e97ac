"""What the tokens of a prompt see of each other, and what follows from that for caching and chunking prompts."""

from __future__ import annotations

from enum import StrEnum


class PromptMask(StrEnum):
    """What a token of the prompt sees when the prompt is encoded."""

    CAUSAL = "causal"
    BIDIRECTIONAL = "bidirectional"
    """The whole prompt."""
    BLOCK_CAUSAL = "block_causal"
    """Its own block and everything before it."""

    @property
    def is_causal(self) -> bool:
        """Return whether prompts can be encoded by the attention backend that SGLang chose."""
        return self is PromptMask.CAUSAL

    @property
    def is_whole(self) -> bool:
        """Return whether a prompt must be encoded in one forward, so that no other request can share its KV."""
        return self is PromptMask.BIDIRECTIONAL

    def shared_unit(self, block_size: int) -> int:
        """Return how many tokens requests share at a time: prefixes are cut to a multiple of this."""
        return block_size if self is PromptMask.BLOCK_CAUSAL else 1
