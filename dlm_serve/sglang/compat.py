"""Say which versions of SGLang are supported, and whether the installed one has what our lists name.

The only module that knows about versions.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version

from dlm_serve.errors import UnsupportedSGLangError
from dlm_serve.seams import Seam, problem_with

SUPPORTED_VERSIONS = ("0.5.23",)


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
