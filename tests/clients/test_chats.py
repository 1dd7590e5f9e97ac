"""Each client gives its user what the server answered, in each mode, said in the body or by the model's name."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import requests
from clients import CLIENTS, SECONDS, Answer, Client, RefusedError, answer_in

MODES = ("auto", "self_speculation", "diffusion", "autoregressive")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "city": {"type": "string"},
        "job": {"type": "string"},
    },
    "required": ["name", "age", "city", "job"],
    "additionalProperties": False,
}
PLACE = {
    "type": "object",
    "properties": {"city": {"enum": ["Lima", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
QUESTION = "Extract name, age, city and job as JSON: Paul is a 34-year-old baker from Rome."
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 96, "temperature": 0}
ASKED: dict[str, dict[str, Any]] = {
    "chat": CHAT,
    "schema": {
        **CHAT,
        "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}},
    },
    "tools": {
        **CHAT,
        "tools": [
            {
                "type": "function",
                "function": {"name": "visit", "description": "goes", "parameters": PLACE},
            }
        ],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    },
    "logprobs": {**CHAT, "logprobs": True, "top_logprobs": 2},
}
NEEDS_TOKENS_IN_ORDER = ("schema", "tools")
"""What diffusion refuses."""

WAYS: dict[str, Callable[[str], dict[str, Any]]] = {
    "body": lambda mode: {"model": "nano", "custom_params": {"dlm": {"mode": mode}}},
    "name": lambda mode: {"model": f"nano:{mode}"},
}


@pytest.fixture(scope="module", params=CLIENTS, ids=lambda client: client.__name__)
def client(request: pytest.FixtureRequest, url: str) -> Client:
    made: Client = request.param(url)
    return made


@cache
def plainly(url: str, asked: str, mode: str) -> Answer:
    """The answer without a client."""
    body = {**ASKED[asked], **WAYS["body"](mode)}
    response = requests.post(f"{url}/v1/chat/completions", json=body, timeout=SECONDS)
    assert response.status_code == 200, response.text
    return answer_in(response.json())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("asked", ASKED)
def test_an_answer(client: Client, url: str, asked: str, mode: str) -> None:
    body = {**ASKED[asked], **WAYS["body"](mode)}
    if mode == "diffusion" and asked in NEEDS_TOKENS_IN_ORDER:
        with pytest.raises(RefusedError, match=r"does not support (response_format|tools)"):
            client.ask(body)
        return
    answer, expected = client.ask(body), plainly(url, asked, mode)
    assert (answer.text, answer.calls) == (expected.text, expected.calls)
    assert answer.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
    assert bool(answer.logprobs) == (asked == "logprobs")
    if asked != "tools" and mode != "diffusion":  # which answers less well
        assert json.loads(answer.text) == {"name": "Paul", "age": 34, "city": "Rome", "job": "baker"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", MODES)
def test_a_stream(client: Client, url: str, mode: str, way: str) -> None:
    pieces = client.stream({**CHAT, **WAYS[way](mode)})
    assert "".join(pieces) == plainly(url, "chat", mode).text
    assert sum(map(bool, pieces)) > 1


def test_a_wrong_option(client: Client) -> None:
    with pytest.raises(RefusedError, match=r"custom_params\.dlm\.mode = .{1,2}fast"):
        client.ask({**CHAT, **WAYS["body"]("fast")})
