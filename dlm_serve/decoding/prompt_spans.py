"""Cut a prompt into spans: tokens that see each other, and everything before them, when it is encoded."""

from __future__ import annotations

from dlm_serve.decoding.prompt_mask import PromptMask


def grid_ends(num_tokens: int, block_length: int) -> list[int]:
    """Return where spans end, ascending, when prompt and answer lie on one grid of blocks from position 0."""
    return [*range(block_length, num_tokens, block_length), num_tokens]


def free_ends(mask: PromptMask, num_prompt: int, num_tokens: int, block_size: int, block_length: int) -> list[int]:
    """Return where spans end, ascending, when the blocks of the answer start behind the prompt.

    The answer, of which a resumed request has a part, lies in blocks of `block_length`, as they were committed; a
    block-causal prompt lies in blocks of `block_size`, any other is one span.
    """
    of_prompt = range(block_size, num_prompt, block_size) if mask is PromptMask.BLOCK_CAUSAL else ()
    return [*of_prompt, *range(num_prompt, num_tokens, block_length), num_tokens]
