"""Answer HTTP 400 where SGLang stumbles over what a request says: it checks many values only by using them."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.middleware import Middleware

from dlm_serve.errors import InvalidValueError, OptionError
from dlm_serve.sglang.frontend.bodies import Bodies
from dlm_serve.sglang.frontend.error_bodies import error_body
from dlm_serve.sglang.frontend.model_names import list_aliases
from dlm_serve.sglang.frontend.routes import style_of
from dlm_serve.sglang.protocols import ServerArgsLike

HTTP_SERVER = "sglang.srt.entrypoints.http_server"
_MOST_DETAILS = 5
_STUMBLES = (AttributeError, TypeError, LookupError, OverflowError)


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


def answer_refusals(server_args: ServerArgsLike) -> None:
    """Let the HTTP server, where there is one, read our options on all routes, and refuse what it cannot answer."""
    http_server = sys.modules.get(HTTP_SERVER)
    if http_server is None or any(entry.cls is Bodies for entry in http_server.app.user_middleware):
        return
    app: FastAPI = http_server.app
    _answer_errors_over_bodies(app)
    list_aliases(app, http_server)
    # The innermost, behind authentication and decompression.
    reader: Any = Bodies
    app.user_middleware.append(
        Middleware(
            reader,
            manager=lambda: http_server.get_global_state().tokenizer_manager,
            has_tokenizer=not server_args.skip_tokenizer_init,
        )
    )


def _answer_errors_over_bodies(app: FastAPI) -> None:
    """Answer errors of validators, and ValueErrors that a route does not, with HTTP 400 that names the field."""

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        details = error.errors() if isinstance(error, RequestValidationError) else []
        places = [_place_of(detail) for detail in details]
        told = dict.fromkeys(f"{place}: {detail['msg']}" for place, detail in zip(places, details, strict=True))
        return _refused(request, "; ".join([*told][:_MOST_DETAILS]), places[0] if places else None)

    async def answer(request: Request, error: Exception) -> JSONResponse:
        if not (isinstance(error, ValueError) or _is_of_validation(error)):
            raise error
        named = "" if isinstance(error, InvalidValueError) else f"{type(error).__name__}: "
        return _refused(request, f"{named}{error}")

    app.add_exception_handler(RequestValidationError, invalid)
    for kind in (ValueError, *_STUMBLES):
        app.add_exception_handler(kind, answer)


def _place_of(detail: Mapping[str, Any]) -> str:
    """Return the field that a validator's error is about, with dots; `body` where that is no JSON."""
    if detail["type"] == "json_invalid":  # its place is a position in the text
        return "body"
    return ".".join(str(part) for part in detail["loc"] if part != "body")


def _refused(request: Request, message: str, param: str | None = None) -> JSONResponse:
    return JSONResponse(error_body(style_of(request.url.path), 400, message, param=param), 400)


def _is_of_validation(error: Exception) -> bool:
    """Return whether `error` comes from a validator that pydantic has called, which passes on all but ValueErrors."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == "pydantic.type_adapter" for frame, _ in frames)
