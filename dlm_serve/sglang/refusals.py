"""Answer HTTP 400 where SGLang stumbles over what a request says: it checks many values only by using them."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError

from dlm_serve.errors import OptionError

HTTP_SERVER = "sglang.srt.entrypoints.http_server"
_STUMBLES = (AttributeError, TypeError, LookupError, OverflowError, OptionError)


@contextmanager
def unreadable_is_refused() -> Iterator[None]:
    """Raise OptionError in place of any error, but for those that SGLang answers as refusals already.

    For code that does nothing but read a request.
    """
    try:
        yield
    except (ValueError, HTTPException):
        raise
    except Exception as error:
        limit = f"cannot be read ({type(error).__name__}: {error})"
        raise OptionError("request", "<as sent>", limit, "correct the types of its fields") from error


def answer_refusals() -> None:
    """Let the HTTP server, where there is one, answer errors over a body as SGLang's own validation errors."""
    http_server = sys.modules.get(HTTP_SERVER)
    if http_server is None:
        return
    app = http_server.app
    invalid = app.exception_handlers[RequestValidationError]

    async def answer(request: Any, error: Exception) -> Any:
        if not (isinstance(error, OptionError) or _is_of_validation(error)):
            raise error
        message = f"{type(error).__name__}: {error}"
        return await invalid(
            request, RequestValidationError([{"loc": ("body",), "msg": message, "type": "value_error"}])
        )

    for kind in _STUMBLES:
        app.add_exception_handler(kind, answer)


def _is_of_validation(error: Exception) -> bool:
    """Return whether `error` comes from a validator that pydantic has called, which passes on all but ValueErrors."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == "pydantic.type_adapter" for frame, _ in frames)
