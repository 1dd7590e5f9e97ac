"""dlm-serve: diffusion language models through SGLang."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlm_serve.offline import DiffusionLM as DiffusionLM
    from dlm_serve.offline import SDLM_generate as SDLM_generate

__version__ = "0.1.0"

_OFFLINE = ("DiffusionLM", "SDLM_generate")


def __getattr__(name: str) -> Any:
    """Return what decodes without a server. Imported when it is first asked for, since it loads torch and SGLang."""
    if name not in _OFFLINE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dlm_serve import offline

    return getattr(offline, name)
