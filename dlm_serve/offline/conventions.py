"""What the functions of a model card return where families differ: their counts of forward passes, and their ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dlm_serve.client import Statistics


@dataclass(frozen=True)
class Decoded:
    """An answer as the engine gives it."""

    num_prompt: int
    """Tokens of the prompt."""
    ids: tuple[int, ...]
    """New tokens, with the one that stopped it."""
    is_stopped: bool
    """Whether a token stopped it, not its length."""
    statistics: Statistics


@dataclass(frozen=True)
class Convention:
    """What a family's reference does that the engine does not."""

    nfe: Callable[[Decoded], int]
    """The reference's count of forward passes."""
    has_default_end: bool = True
    """Whether the checkpoint's end-of-sequence tokens stop an answer where the caller names none."""
    keeps_end: bool = True
    """Whether the token that stopped an answer is part of it."""


def _engine_nfe(decoded: Decoded) -> int:
    return decoded.statistics.nfe


def _nemotron_labs_diffusion_nfe(decoded: Decoded) -> int:
    """Count the prefill, except in diffusion, where the reference runs one more block behind a seed that ends it."""
    statistics = decoded.statistics
    if statistics.mode != "diffusion":
        return statistics.nfe + 1
    ends_on_seed = decoded.is_stopped and (len(decoded.ids) - 1) % statistics.block_length == 0
    return statistics.nfe + (2 if ends_on_seed else 0)


def _efficient_dlm_nfe(decoded: Decoded) -> int:
    """Count the commit of the last block, which the engine leaves out."""
    return decoded.statistics.nfe + 1


def _sdlm_nfe(decoded: Decoded) -> int:
    """Count the prefill in autoregression alone: windows ride in it."""
    return decoded.statistics.nfe + (decoded.statistics.mode == "autoregressive")


def _bd3lm_nfe(decoded: Decoded) -> int:
    """Leave commits out, of which the engine runs one per block but the last; blocks count from the first token."""
    block_length = decoded.statistics.block_length
    num_tokens = decoded.num_prompt + len(decoded.ids)
    num_blocks = -(-num_tokens // block_length) - decoded.num_prompt // block_length
    return decoded.statistics.nfe - (num_blocks - 1)


CONVENTIONS = {
    "nemotron-labs-diffusion": Convention(_nemotron_labs_diffusion_nfe),
    "efficient-dlm": Convention(_efficient_dlm_nfe, has_default_end=False),
    "sdlm": Convention(_sdlm_nfe, keeps_end=False),
    "bd3lm": Convention(_bd3lm_nfe),
    "sdar": Convention(_engine_nfe),
}
"""By the name of the family."""
