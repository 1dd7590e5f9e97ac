"""Find options that do not stand where they are read, and names that are nearly ours: none is ignored."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import lru_cache

from dlm_serve.errors import OptionError
from dlm_serve.options.request import OPTIONS_FIELD, RequestOptions

OPTIONS_KEY = "dlm"
"""Where in a request's `custom_params` its options are, as the client sent them."""

_OPTIONS = tuple(RequestOptions.model_fields)
_LIKENESS = 0.8
_OTHERS_NAMES = ("model", "models")
"""Which look like ours."""


def refuse_misplaced(fields: Mapping[str, object], where: str = "") -> None:
    """Refuse those of `fields` that are options of ours or their names misspelt; `where` is what they stand in.

    Raises OptionError with the right place.
    """
    for name, value in fields.items():
        if name == "extra_body":
            limit = "is an argument of the OpenAI client, which sends what is in it as fields of the body"
            raise OptionError(f"{where}{name}", value, limit, "send these fields without it")
        if (right := _right_place(name)) is not None:
            raise OptionError(f"{where}{name}", value, "nothing reads it here", f"did you mean {right}")


@lru_cache(4096)
def _right_place(name: str) -> str | None:
    """Return where what `name` seems to mean should stand; None if it means none of ours."""
    spelt = name.lower().replace("-", "_")
    if name in _OTHERS_NAMES:
        return None
    if spelt.startswith(OPTIONS_KEY) or difflib.get_close_matches(spelt, (OPTIONS_KEY,), 1, _LIKENESS):
        return f"{OPTIONS_FIELD}, with custom_params beside the prompt or the messages"
    options = difflib.get_close_matches(spelt, _OPTIONS, 1, _LIKENESS)
    return f"{OPTIONS_FIELD}.{options[0]}, with custom_params beside the prompt or the messages" if options else None
