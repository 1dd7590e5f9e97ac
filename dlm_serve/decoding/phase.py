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

    `DENOISE` and `DRAFT` fill the masks of a block, the others stand where there are none left to fill. What each sees,
    which KV it keeps and what it emits is for the policy's way to commit to say: `step`.
    """

    DECODE = 0
    DENOISE = 1
    DRAFT = 2
    VERIFY = 3
    COMMIT = 4

    @property
    def after_refining(self) -> Phase:
        """The phase behind the full block that this phase refines."""
        return {Phase.DENOISE: Phase.COMMIT, Phase.DRAFT: Phase.VERIFY}.get(self, self)


FIRST_PHASE = {
    Mode.AUTOREGRESSIVE: Phase.DECODE,
    Mode.DIFFUSION: Phase.DENOISE,
    Mode.SELF_SPECULATION: Phase.DRAFT,
}
