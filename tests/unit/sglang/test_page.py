"""The live page reaches a browser without a key, from the server alone, and nothing else gets by the key with it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.responses import PlainTextResponse

from dlm_serve.sglang.frontend.page import FOLDER, PAGE, add_page

FILES = {file.name: file.read_text() for file in FOLDER.iterdir()}
PATHS = {PAGE if name == "page.html" else f"{PAGE}/{name}": name for name in FILES}
OUTSIDE = re.compile(r"""(?:https?:)?//[\w.-]+\.\w|@import|url\(""")
SVG_NAMESPACE = '"http://www.w3.org/2000/svg"'


class KeyMissing:
    """SGLang's middleware, to requests without a key."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await (self.app if scope["type"] != "http" else PlainTextResponse("no key", 401))(scope, receive, send)


@pytest.fixture
def client() -> TestClient:
    """A client without a key, of a server that has one and was given the page before."""
    app = FastAPI()
    add_page(app)
    app.add_middleware(KeyMissing)
    return TestClient(app)


@pytest.mark.parametrize("path", PATHS)
def test_files_need_no_key(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.text) == (200, FILES[PATHS[path]])
    kind = {"html": "text/html", "css": "text/css", "js": "text/javascript"}[PATHS[path].rpartition(".")[2]]
    assert response.headers["content-type"] == f"{kind}; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"


def test_a_slash_at_the_end_leads_to_the_page(client: TestClient) -> None:
    assert client.get(f"{PAGE}/").url.path == PAGE


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/dlm/status"), ("GET", "/generate"), ("GET", "/dlm/../page.py"), ("GET", "/dlmx"), ("POST", PAGE)],
)
def test_all_else_needs_one(client: TestClient, method: str, path: str) -> None:
    assert client.request(method, path).status_code == 401


def test_browsers_run_and_ask_nothing_but_the_servers(client: TestClient) -> None:
    policy = client.get(PAGE).headers["content-security-policy"]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives.pop("img-src") == "data:"  # for the empty icon
    assert directives.pop("default-src") == "'none'"
    assert {directives.pop(name) for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert set(directives.values()) == {"'none'"}


@pytest.mark.parametrize("name", FILES)
def test_no_address_is_outside(name: str) -> None:
    assert OUTSIDE.findall(FILES[name].replace(SVG_NAMESPACE, "")) == []


def test_texts_are_never_read_as_html() -> None:
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser"):
        assert [file for file, content in FILES.items() if name in content] == []
