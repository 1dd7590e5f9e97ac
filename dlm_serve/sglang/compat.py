"""Say which versions of SGLang are supported, and whether the installed one has what the ledger names.

The only module that knows about versions.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterable
from importlib.metadata import version

from dlm_serve.errors import UnsupportedSGLangError
from dlm_serve.sglang.ledger import Seam

SUPPORTED_VERSIONS = ("0.5.23",)


def problem_with(seam: Seam) -> str | None:
    """Return what is wrong with `seam` in the installed SGLang, or None."""
    try:
        found = pkgutil.resolve_name(seam.target)
    except (ImportError, AttributeError) as error:
        return f"{seam.target} is missing ({error})"
    if not seam.parameters:
        return None
    available = inspect.signature(found).parameters
    missing = [name for name in seam.parameters if name not in available]
    return f"{seam.target} has no parameter {', '.join(missing)}" if missing else None


def require(seams: Iterable[Seam]) -> None:
    """Raise UnsupportedSGLangError, with all that is wrong, unless the installed SGLang has these seams."""
    installed = version("sglang")
    problems = [problem for seam in seams if (problem := problem_with(seam))]
    if installed not in SUPPORTED_VERSIONS:
        problems.insert(0, f"sglang {installed} is not a supported version")
    if problems:
        raise UnsupportedSGLangError(
            f"dlm-serve cannot extend the installed sglang {installed}: {'; '.join(problems)}. "
            f"Install sglang=={SUPPORTED_VERSIONS[-1]}, or a dlm-serve release that supports {installed}."
        )
