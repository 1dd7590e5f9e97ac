"""The live page at `/dlm`, for browsers: asks the server, shows answers as they denoise, and what the server does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import RedirectResponse, Response

import dlm_serve

PAGE = "/dlm"
FOLDER = Path(dlm_serve.__file__).parent / "assets" / "page"

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Let `app`, which must not have started, answer browsers that ask for the page, without a key.

    The page says nothing about the server; what it then asks for needs the key. No route can do that: where the server
    has a key, SGLang's middleware refuses all but a few routes of its own. It is added later than this, so the page
    stands in front of whatever middleware there will be.
    """
    build = app.build_middleware_stack
    app.build_middleware_stack = lambda: _PageFirst(build())  # type: ignore[method-assign]


class _PageFirst:
    """An ASGI application that answers with the page's files, and passes all other requests on."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._files: dict[str, Response] = {PAGE + "/": RedirectResponse("../dlm")}
        for file in FOLDER.iterdir():
            path = PAGE if file.name == "page.html" else f"{PAGE}/{file.name}"
            self._files[path] = Response(file.read_bytes(), headers=_HEADERS, media_type=_TYPES[file.suffix])

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        app = self._app
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            app = self._files.get(scope["path"].removeprefix(scope.get("root_path", "")), app)
        await app(scope, receive, send)
