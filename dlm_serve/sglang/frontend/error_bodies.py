"""Write errors as the clients of each route expect them: one shape for OpenAI's routes, whoever refuses."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from dlm_serve.errors import field_of
from dlm_serve.sglang.frontend.routes import ErrorStyle

_TYPES = {HTTPStatus.BAD_REQUEST: "invalid_request_error", HTTPStatus.NOT_FOUND: "not_found_error"}


def error_body(
    style: ErrorStyle, status: int, message: str, *, param: str | None = None, **known: Any
) -> dict[str, Any]:
    """Return the body of an error; `known` are the `type` and `code` that SGLang gives it, where it does.

    Without a `param`, the field is taken from the message, where it is one of ours.
    """
    kind = _TYPES.get(HTTPStatus(status)) or known.get("type") or HTTPStatus(status).phrase
    if style is ErrorStyle.OLLAMA:
        return {"error": message}
    if style is ErrorStyle.ANTHROPIC:
        return {"type": "error", "error": {"type": kind, "message": message}}
    error = {"message": message, "type": kind, "param": param or field_of(message), "code": known.get("code") or status}
    return {"error": error}


def restyled(style: ErrorStyle, status: int, content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the body of an error in `style`, whichever of SGLang's shapes `content` has."""
    if style is ErrorStyle.ANTHROPIC and content.get("type") == "error":
        return content
    error = content.get("error", content)
    if not isinstance(error, Mapping):
        return error_body(style, status, str(error))
    message = error.get("message", error.get("detail", ""))
    known = {name: error[name] for name in ("type", "code") if error.get(name) is not None}
    return error_body(style, status, str(message), param=error.get("param"), **known)
