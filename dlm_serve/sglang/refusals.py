"""Answer HTTP 400 where SGLang stumbles over what a request says: it checks many values only by using them."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from dlm_serve.errors import OptionError
from dlm_serve.sglang.protocols import ServerArgsLike

HTTP_SERVER = "sglang.srt.entrypoints.http_server"
_TEXT_ROUTES = ("/v1/", "/api/", "/tokenize", "/detokenize", "/invocations")
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
    """Let the HTTP server, where there is one, refuse what it would answer with HTTP 500."""
    http_server = sys.modules.get(HTTP_SERVER)
    if http_server is None:
        return
    _answer_errors_over_bodies(http_server.app)
    if server_args.skip_tokenizer_init:
        http_server.app.add_middleware(_TextRefused)


def _answer_errors_over_bodies(app: FastAPI) -> None:
    """Answer ValueErrors that a route does not, and errors of validators, as SGLang's own validation errors."""
    invalid: Any = app.exception_handlers[RequestValidationError]

    async def answer(request: Request, error: Exception) -> Any:
        if not (isinstance(error, ValueError) or _is_of_validation(error)):
            raise error
        message = f"{type(error).__name__}: {error}"
        return await invalid(
            request, RequestValidationError([{"loc": ("body",), "msg": message, "type": "value_error"}])
        )

    for kind in (ValueError, *_STUMBLES):
        app.add_exception_handler(kind, answer)


class _TextRefused:
    """An ASGI application that refuses requests to routes whose answers are text, and passes on the others."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        app = self._app
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].startswith(_TEXT_ROUTES):
            limit = "needs the tokenizer, which --skip-tokenizer-init leaves out"
            refused = OptionError("path", scope["path"], limit, "send input_ids to /generate")
            app = JSONResponse({"error": {"message": str(refused), "type": "BadRequest", "code": 400}}, 400)
        await app(scope, receive, send)


def _is_of_validation(error: Exception) -> bool:
    """Return whether `error` comes from a validator that pydantic has called, which passes on all but ValueErrors."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == "pydantic.type_adapter" for frame, _ in frames)
