"""How the limits of a family read, in the refusals of server files and requests alike."""

from __future__ import annotations

from collections.abc import Sequence

from dlm_serve.decoding import Mode
from dlm_serve.families import Family


def on_grid(family: Family, block_size: int) -> tuple[str, str]:
    """Return why blocks may have no other length, and the remedy."""
    return f"{family.name} only decodes in blocks of {block_size} tokens, as it was trained", "leave it out"


def use_one_of(family: Family) -> str:
    """Return the remedy for a mode that the family does not offer."""
    return f"use {listed((Mode.AUTO, *family.modes))}"


def listed(names: Sequence[str]) -> str:
    """Return names in one line."""
    return ", ".join(str(name) for name in names)
