"""Read our options in the bodies of all routes that generate, and carry them to admission.

SGLang's routes know different fields and read over the others. What they would lose travels beside the request, in a
context variable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import orjson
from fastapi.responses import JSONResponse
from sglang.srt.entrypoints.openai.protocol import DEFAULT_MODEL_NAME
from starlette.datastructures import MutableHeaders

from dlm_serve.errors import OptionError
from dlm_serve.options.misplaced import OPTIONS_KEY, refuse_misplaced
from dlm_serve.options.request import OPTIONS_FIELD
from dlm_serve.sglang.frontend.error_bodies import error_body, restyled
from dlm_serve.sglang.frontend.model_names import mode_of
from dlm_serve.sglang.frontend.routes import GENERATES, REFUSED, WITH_TEXT, Route, style_of
from dlm_serve.sglang.serving import current


@dataclass
class Said:
    """What the body of a request says beside what its route reads."""

    custom_params: Mapping[str, Any]
    fields: frozenset[str]
    """Its fields at the top level, by name."""
    begun: dict[str, Any] = field(default_factory=dict)
    """SGLang's states of the requests that were made of it, by request id."""
    is_admitted: bool = False
    """Whether one of these was checked and sent to a scheduler."""
    refusal: str | None = None
    """Why one of them was not."""


_said: ContextVar[Said | None] = ContextVar("said", default=None)


def said() -> Said:
    """Return what the body of the request that is being answered says; nothing where there is no body."""
    return _said.get() or Said({}, frozenset())


def with_said(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return SGLang's sampling parameters with the body's `custom_params`. Raises OptionError for options twice."""
    params, outside = params or {}, said().custom_params
    inside = params.get("custom_params") or {}
    if not outside or not isinstance(inside, dict):
        return dict(params)
    if OPTIONS_KEY in inside and OPTIONS_KEY in outside:
        raise OptionError(OPTIONS_FIELD, outside[OPTIONS_KEY], "is said twice", "say it in one place")
    return {**params, "custom_params": {**outside, **inside}}


class Bodies:
    """An ASGI application that reads the bodies of requests for another, and shapes its errors.

    What has begun and is not finished when a client leaves, it ends.
    """

    def __init__(self, app: Any, manager: Callable[[], Any], has_tokenizer: bool) -> None:
        self._app, self._manager, self._has_tokenizer = app, manager, has_tokenizer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        is_asked = scope["type"] == "http" and scope["method"] in ("POST", "PUT")
        if not is_asked or not (path in GENERATES or path in REFUSED or path.startswith(WITH_TEXT)):
            await self._app(scope, receive, send)
            return
        style = style_of(path)
        send = _shaping(send, lambda status, content: restyled(style, status, content))
        try:
            self._refuse_route(path)
            if path in GENERATES:
                receive, carried = await self._read(GENERATES[path], scope, receive)
        except OptionError as error:
            status = 404 if error.field == "model" else 400
            await JSONResponse(error_body(style, status, str(error)), status)(scope, receive, send)
            return
        if path not in GENERATES:
            await self._app(scope, receive, send)
            return
        _said.set(carried)
        if GENERATES[path].begins_before_it_reads:
            send = _held(send, carried, lambda message: error_body(style, 400, message))
        try:
            await self._app(scope, receive, send)
        finally:
            self._manager().abort_unfinished(carried.begun)

    def _refuse_route(self, path: str) -> None:
        """Raise OptionError where no request to the route can be answered."""
        if path in REFUSED:
            raise OptionError("path", path, f"a diffusion language model {REFUSED[path]}", "ask for text")
        if not self._has_tokenizer and path.startswith(WITH_TEXT):
            limit = "needs the tokenizer, which --skip-tokenizer-init leaves out"
            raise OptionError("path", path, limit, "send input_ids to /generate")

    async def _read(self, route: Route, scope: Any, receive: Any) -> tuple[Any, Said]:
        """Return a `receive` that gives the body as SGLang's route understands it, and what else it says.

        Raises OptionError for what stands in the wrong place, or is read by nobody.
        """
        content = await _content_of(receive)
        try:
            body = orjson.loads(content)
        except ValueError:
            return _replayed(content, receive), said()
        if not isinstance(body, dict):
            return _replayed(content, receive), said()
        fields = frozenset(name for name, value in body.items() if value is not None)
        refuse_ignored(route, body)
        if route.stumbles_without_model:
            body = {"model": DEFAULT_MODEL_NAME, **body}
        custom, model = self._taken(body)
        if custom.get(OPTIONS_KEY) is not None:
            current().request_rules.plan({"custom_params": {OPTIONS_KEY: custom[OPTIONS_KEY]}})
        if model != body.get("model") or "custom_params" in body:
            body = {name: value for name, value in body.items() if name != "custom_params"}
            content = orjson.dumps(body if model is None else {**body, "model": model})
            MutableHeaders(scope=scope)["content-length"] = str(len(content))
        return _replayed(content, receive), Said(custom, fields)

    def _taken(self, body: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        """Return the `custom_params` of a body, with the mode that its model's name says, and the served name."""
        custom, model = body.get("custom_params") or {}, body.get("model")
        if not isinstance(custom, dict):
            raise OptionError("custom_params", custom, "must be a mapping", "give options by name")
        if not isinstance(model, str):
            return custom, model
        served = self._manager().served_model_name
        mode = mode_of(model, served)
        if mode is None:
            return custom, served if model == DEFAULT_MODEL_NAME else model
        options = custom.get(OPTIONS_KEY) or {}
        if isinstance(options, dict):
            if options.get("mode", mode) != mode:
                raise OptionError(
                    f"{OPTIONS_FIELD}.mode", options["mode"], f"is {mode} by the model's name", "drop one"
                )
            options = {**options, "mode": mode}
        return {**custom, OPTIONS_KEY: options}, served


def refuse_ignored(route: Route, body: Mapping[str, Any]) -> None:
    """Refuse what the route would read over, and options of ours where nothing reads them. Raises OptionError."""
    for name, nothing in route.ignored.items():
        if body.get(name) not in nothing:
            raise OptionError(name, body[name], "is not supported on this route", "leave it out")
    for name, other in route.only_with.items():
        if body.get(name) and not body.get(other):
            raise OptionError(name, body[name], f"says nothing without {other}", f"give {other}, or leave it out")
    refuse_misplaced(body)
    inner = body.get(route.parameters) if route.parameters else None
    for parameters in inner if isinstance(inner, list) else [inner]:
        if isinstance(parameters, dict):
            refuse_misplaced(parameters, f"{route.parameters}.")


async def _content_of(receive: Any) -> bytes:
    """Return the whole body of a request."""
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            break
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            break
    return b"".join(parts)


def _replayed(content: bytes, receive: Any) -> Any:
    """Return a `receive` that gives `content` first, and then what `receive` gives."""
    messages = [{"type": "http.request", "body": content, "more_body": False}]

    async def replay() -> Any:
        return messages.pop() if messages else await receive()

    return replay


def _shaping(send: Any, shape: Callable[[int, Mapping[str, Any]], Mapping[str, Any]]) -> Any:
    """Return a `send` that holds back errors in JSON until they are whole, and sends them shaped."""
    held: list[Any] = []

    async def shaped(message: Any) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            held.append(message)
        elif not held:
            await send(message)
        else:
            held.append(message)
            if not message.get("more_body", False):
                for part in _shaped(held, shape):
                    await send(part)
                held.clear()

    return shaped


def _held(send: Any, said: Said, refused: Callable[[str], Mapping[str, Any]]) -> Any:
    """Return a `send` that holds back the beginning of a stream until its request is admitted.

    Where it is refused, HTTP 400 is sent in place of all.
    """
    held: list[Any] = []
    status = 0
    is_refused = False

    async def sent(message: Any) -> None:
        nonlocal status, is_refused
        if is_refused:
            return
        status = message.get("status", status)
        held.append(message)
        if status == 200 and not said.is_admitted:
            is_refused = said.refusal is not None
            if is_refused:
                held[:] = _messages_of(refused(str(said.refusal)))
            elif message["type"] == "http.response.start" or message.get("more_body", False):
                return
        for part in held:
            await send(part)
        held.clear()

    return sent


def _messages_of(body: Mapping[str, Any]) -> list[Any]:
    """Return the messages of an answer of HTTP 400."""
    content = orjson.dumps(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    start = {"type": "http.response.start", "status": 400, "headers": headers}
    return [start, {"type": "http.response.body", "body": content}]


def _shaped(messages: list[Any], shape: Callable[[int, Mapping[str, Any]], Mapping[str, Any]]) -> list[Any]:
    """Return the messages of an answer with its body shaped; as they are where that is no mapping in JSON."""
    start, content = messages[0], b"".join(message.get("body", b"") for message in messages[1:])
    try:
        body = orjson.loads(content)
    except ValueError:
        return messages
    if not isinstance(body, dict):
        return messages
    content = orjson.dumps(shape(start["status"], body))
    MutableHeaders(raw=start["headers"])["content-length"] = str(len(content))
    return [start, {"type": "http.response.body", "body": content}]
