"""What an engine's ledger names: things of the engine that are called, subclassed or changed."""

from __future__ import annotations

import inspect
import pkgutil
from dataclasses import dataclass


@dataclass(frozen=True)
class Seam:
    """Something of an engine's that is called, subclassed or hooked, and that not all of its own models stand on."""

    target: str
    """Its dotted name."""
    parameters: tuple[str, ...] = ()
    """Parameters it must have."""


def problem_with(seam: Seam) -> str | None:
    """Return what is wrong with `seam` in the installed engine, or None."""
    try:
        found = pkgutil.resolve_name(seam.target)
    except (ImportError, AttributeError) as error:
        return f"{seam.target} is missing ({error})"
    if not seam.parameters:
        return None
    available = inspect.signature(found).parameters
    missing = [name for name in seam.parameters if name not in available]
    return f"{seam.target} has no parameter {', '.join(missing)}" if missing else None
