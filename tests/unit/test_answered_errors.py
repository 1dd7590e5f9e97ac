"""Errors over what a request says are HTTP 400; those of the server stay HTTP 500."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from pydantic import BaseModel, model_validator

from dlm_serve.sglang.frontend import refusals
from dlm_serve.sglang.frontend.error_bodies import restyled
from dlm_serve.sglang.frontend.routes import ErrorStyle


class Body(BaseModel):
    """A body whose validator stumbles, as some of SGLang's do."""

    content: str = ""

    @model_validator(mode="before")
    @classmethod
    def stumble(cls, values: Any) -> Any:
        assert values.get("content") != "assert"
        return values


def server(monkeypatch: pytest.MonkeyPatch, *, skip_tokenizer_init: bool) -> TestClient:
    """An HTTP server with routes named as SGLang's, which does what bodies say."""
    app = FastAPI()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": error.errors()[0]["msg"]}, 400)

    @app.post("/v1/chat/completions")
    @app.post("/generate")
    async def answer(body: Body) -> str:
        if body.content == "refuse":
            raise ValueError("n is too low")
        return {"a": "b"}[body.content]

    monkeypatch.setitem(sys.modules, refusals.HTTP_SERVER, SimpleNamespace(app=app))
    refusals.answer_refusals(SimpleNamespace(skip_tokenizer_init=skip_tokenizer_init))
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"content": "a"}, 200, "b"),
        ({"content": 5}, 400, "content: Input should be a valid string"),
        ([], 400, "AttributeError: 'list' object has no attribute 'get'"),
        ({"content": "refuse"}, 400, "ValueError: n is too low"),
        ({"content": "c"}, 500, "Internal Server Error"),
    ],
    ids=["fine", "invalid", "stumble", "refused", "fault"],
)
def test_status(monkeypatch: pytest.MonkeyPatch, body: Any, status: int, words: str) -> None:
    response = server(monkeypatch, skip_tokenizer_init=False).post("/v1/chat/completions", json=body)
    assert response.status_code == status
    assert words in response.text


WHOLE = {"message": "no", "type": "invalid_request_error", "param": None, "code": 400}


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ({"object": "error", "message": "no", "type": "BadRequest", "param": None, "code": 400}, WHOLE),
        ({"error": {"message": "no"}}, WHOLE),
        ({"error": "no"}, WHOLE),
        ({"detail": "no"}, WHOLE),
        ({"error": {"message": "no", "param": "top_p"}}, {**WHOLE, "param": "top_p"}),
        ({"message": "a.b = 1: no"}, {**WHOLE, "message": "a.b = 1: no", "param": "a.b"}),
        ({"error": {"message": "no", "code": "not_here"}}, {**WHOLE, "code": "not_here"}),
    ],
    ids=str,
)
def test_one_shape(content: dict[str, Any], error: dict[str, Any]) -> None:
    """Whichever of SGLang's an error has; clients of other makers read theirs."""
    assert restyled(ErrorStyle.OPENAI, 400, content) == {"error": error}
    assert restyled(ErrorStyle.OLLAMA, 400, content) == {"error": error["message"]}
    anthropic = {"type": "error", "error": {"type": error["type"], "message": error["message"]}}
    assert restyled(ErrorStyle.ANTHROPIC, 400, content) == anthropic
    assert restyled(ErrorStyle.ANTHROPIC, 400, anthropic) == anthropic


def test_text_needs_a_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    without = server(monkeypatch, skip_tokenizer_init=True)
    refused = without.post("/v1/chat/completions", json={"content": "a"})
    assert refused.status_code == 400
    assert "needs the tokenizer, which --skip-tokenizer-init leaves out; send input_ids to /generate." in refused.text
    assert without.post("/generate", json={"content": "a"}).status_code == 200
