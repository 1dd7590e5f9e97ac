"""The words for how a request decodes (mode) and for what one row of one forward does (phase)."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Literal


class Mode(StrEnum):
    """How a request decodes. `auto` is resolved to one of the others before the request is queued."""

    AUTO = "auto"
    AUTOREGRESSIVE = "autoregressive"
    DIFFUSION = "diffusion"
    SELF_SPECULATION = "self_speculation"


class Speculation(StrEnum):
    """How self-speculation drafts and verifies."""

    LINEAR = "linear"
    """In turn, a forward each."""
    ONE_FORWARD = "one_forward"
    """Together: a forward verifies a draft and drafts the next behind the likeliest stops."""


ConcreteMode = Literal[Mode.AUTOREGRESSIVE, Mode.DIFFUSION, Mode.SELF_SPECULATION]


class Phase(IntEnum):
    """What a row does in one forward; the value is what the device stores.

    `DENOISE` and `DRAFT` fill the masks of a block; `SPECULATE` verifies one draft and makes the next; the other phases
    have no masks left to fill. What a row sees in its phase, which KV it keeps and what it emits is decided by the
    family's `Commit`.
    """

    DECODE = 0
    DENOISE = 1
    DRAFT = 2
    VERIFY = 3
    COMMIT = 4
    SPECULATE = 5

    @property
    def after_denoising(self) -> Phase:
        """Return the phase that follows once the block of this phase has no masks left."""
        return {Phase.DENOISE: Phase.COMMIT, Phase.DRAFT: Phase.VERIFY}.get(self, self)


FIRST_PHASE = {
    Mode.AUTOREGRESSIVE: Phase.DECODE,
    Mode.DIFFUSION: Phase.DENOISE,
    Mode.SELF_SPECULATION: Phase.DRAFT,
}
"""The phase in which a block starts, by mode."""
