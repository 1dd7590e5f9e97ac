"""The errors that dlm-serve raises.

- DlmServeError
  - InvalidValueError: a value outside its limits; says field, value, limit and remedy
    - OptionError: in a request (HTTP 400)
    - ConfigError: in a command's flags, the server's YAML file or a training recipe
    - CheckpointError: in a checkpoint folder
  - ServerError: a running server cannot be reached, or refuses
  - UnsupportedSGLangError: the installed SGLang lacks a seam that dlm-serve stands on
  - UnsupportedVllmError: the installed vLLM does
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from enum import Enum

_FIELD = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*) = ")  # of an InvalidValueError, where its message begins


class DlmServeError(Exception):
    """Any error that dlm-serve raises by itself."""


class InvalidValueError(DlmServeError, ValueError):
    """A value outside its limits. A ValueError, which SGLang's server answers with HTTP 400."""

    def __init__(self, field: str, value: object, limit: str, remedy: str) -> None:
        value = value.value if isinstance(value, Enum) else value  # as it was written
        self.field, self.value, self.limit, self.remedy = field, value, limit, remedy
        shown = value if isinstance(value, str) and value.startswith("<") else repr(value)
        super().__init__(f"{field} = {shown}: {limit}; {remedy}.")

    def __reduce__(self) -> tuple[type, tuple[str, object, str, str]]:
        return type(self), (self.field, self.value, self.limit, self.remedy)


class OptionError(InvalidValueError):
    """A request asks for what cannot be done."""


class ConfigError(InvalidValueError):
    """The flags of a command, or the file of a server or a training, cannot be followed."""


class CheckpointError(InvalidValueError):
    """A checkpoint folder is incomplete or contradicts itself."""


class ServerError(DlmServeError):
    """A running server cannot be reached, or refuses what a command asks of it."""


class UnsupportedSGLangError(DlmServeError):
    """The installed SGLang is not one that dlm-serve can extend."""


class UnsupportedVllmError(DlmServeError):
    """The installed vLLM is not one that dlm-serve can extend."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return what to write in place of the unknown `name`."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}" if close else f"known options are {', '.join(known)}"


def field_of(message: str) -> str | None:
    """Return the field that the message of an InvalidValueError names; None for other messages."""
    found = _FIELD.match(message)
    return found and found[1]
