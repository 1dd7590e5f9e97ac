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


ConcreteMode = Literal[Mode.AUTOREGRESSIVE, Mode.DIFFUSION, Mode.SELF_SPECULATION]


class Phase(IntEnum):
    """What a row does in one forward; the value is what the device stores.

    `DENOISE` and `DRAFT` fill the masks of a block; the other phases have none left to fill. What a row sees in its
    phase, which KV it keeps and what it emits is decided by the family's `Commit`.
    """

    DECODE = 0
    DENOISE = 1
    DRAFT = 2
    VERIFY = 3
    COMMIT = 4

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
