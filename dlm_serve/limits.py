"""How the limits of a family read, to who sets up a server and to who sends a request."""

from __future__ import annotations

from collections.abc import Sequence

from dlm_serve.decoding import Mode
from dlm_serve.families import Family

REFINING_ONLY = ("steps", "convergence_threshold")
"""Options of families whose blocks take several forwards."""

ONE_FORWARD = "each block takes one forward"
NO_SCHEDULE = "there is no fixed schedule: a block is cut where its confidence ends"
"""Why the others have none of these, nor a threshold of None."""


def longest_because(family: Family) -> str:
    """Why blocks may not be longer."""
    if family.policy.refines:
        return "the largest of the server's routing.widths"
    return "twice the checkpoint's block_size and half the largest of the server's routing.widths, whichever is less"


def on_grid(family: Family, block_size: int) -> tuple[str, str]:
    """Why blocks may have no other length, and the remedy."""
    return f"{family.name} decodes in the blocks it was trained with, of {block_size} tokens", "leave it out"


def use_one_of(family: Family) -> str:
    """The remedy for a mode that the family has not."""
    return f"use {listed((Mode.AUTO, *family.modes))}"


def listed(names: Sequence[str]) -> str:
    """Names in one line."""
    return ", ".join(str(name) for name in names)
