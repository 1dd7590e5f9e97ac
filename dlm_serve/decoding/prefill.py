"""Which tokens of a prompt see each other when it is encoded."""

from __future__ import annotations

from dlm_serve.decoding.policy import Policy, Prefill


def stretch_ends(policy: Policy, num_prompt: int, num_tokens: int, block_size: int, block_length: int) -> list[int]:
    """Where the stretches end into which a prompt of `num_prompt` tokens and the answer behind it are cut, ascending.

    The tokens of a stretch see each other and all that is before it. The answer, which is there when a request is
    resumed, lies in blocks of `block_length`, as they were committed; a block-causal prompt in blocks of `block_size`.
    """
    if policy.is_anchored:
        return [*range(block_length, num_tokens, block_length), num_tokens]
    of_prompt = range(block_size, num_prompt, block_size) if policy.prefill is Prefill.BLOCK_CAUSAL else ()
    return [*of_prompt, *range(num_prompt, num_tokens, block_length), num_tokens]
