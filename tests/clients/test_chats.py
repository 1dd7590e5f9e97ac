"""Each client gives its user what the server answered, in each mode, said in the body or by the model's name."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import openai
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
CITIES = ["Lima", "Rome"]
PLACE = {
    "type": "object",
    "properties": {"city": {"enum": CITIES}, "unit": {"const": "C"}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
ALLOWED = [{"city": city, "unit": "C"} for city in CITIES]
"""All that the grammar of the tool's arguments can write: of whatever a model makes, a call that ends."""
QUESTION = "Extract name, age, city and job as JSON: Paul is a 34-year-old baker from Rome."
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 96, "temperature": 0}
TOOLS: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "visit", "description": "goes", "parameters": PLACE}}],
    "parallel_tool_calls": False,
    "max_tokens": 200,
}
ASKED: dict[str, dict[str, Any]] = {
    "chat": CHAT,
    "schema": {
        **CHAT,
        "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}},
    },
    "tools": {**CHAT, **TOOLS, "tool_choice": "required"},
    "named tool": {**CHAT, **TOOLS, "tool_choice": {"type": "function", "function": {"name": "visit"}}},
    "logprobs": {**CHAT, "logprobs": True, "top_logprobs": 2},
}
TOOLS_ASKED = ("tools", "named tool")
REFUSED = {"schema": "response_format", "tools": "tools", "named tool": "tools"}
"""What diffusion, which has no tokens in order, does not support."""

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
    if mode == "diffusion" and asked in REFUSED:
        with pytest.raises(RefusedError, match=f"does not support {REFUSED[asked]}"):
            client.ask(body)
        return
    answer, expected = client.ask(body), plainly(url, asked, mode)
    assert (answer.text, answer.calls) == (expected.text, expected.calls)
    assert answer.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
    assert bool(answer.logprobs) == (asked == "logprobs")
    if asked in TOOLS_ASKED:
        [(name, arguments)] = answer.calls
        assert name == "visit"
        assert arguments in ALLOWED
    elif mode != "diffusion":  # which answers less well
        assert json.loads(answer.text) == {"name": "Paul", "age": 34, "city": "Rome", "job": "baker"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", MODES)
def test_a_stream(client: Client, url: str, mode: str, way: str) -> None:
    pieces = client.stream({**CHAT, **WAYS[way](mode)}).pieces
    assert "".join(pieces) == plainly(url, "chat", mode).text
    assert sum(map(bool, pieces)) > 1


@pytest.mark.parametrize(("asked", "mode"), zip(TOOLS_ASKED, ("self_speculation", "auto"), strict=True))
def test_a_streamed_call(client: Client, url: str, asked: str, mode: str) -> None:
    streamed, expected = client.stream({**ASKED[asked], **WAYS["body"](mode)}), plainly(url, asked, mode)
    assert "".join(streamed.pieces) == expected.text
    assert streamed.calls == expected.calls


@pytest.mark.parametrize("mode", ["auto", "self_speculation", "autoregressive"])
@pytest.mark.parametrize("asked", TOOLS_ASKED)
def test_a_stream_of_a_tool(url: str, asked: str, mode: str) -> None:
    """The name comes first and once, then the arguments of the whole answer, bit by bit."""
    chats = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0).chat.completions
    extra = {"custom_params": {"dlm": {"mode": mode}}}
    chunks = list(chats.create(model="nano", stream=True, extra_body=extra, **ASKED[asked]))
    choices = [choice for chunk in chunks for choice in chunk.choices]
    calls = [call for choice in choices for call in choice.delta.tool_calls or ()]
    assert {call.index for call in calls} == {0}
    assert [call.function.name for call in calls] == ["visit", *[None] * (len(calls) - 1)]
    arguments = json.loads("".join(call.function.arguments for call in calls))
    assert arguments in ALLOWED
    assert [("visit", arguments)] == plainly(url, asked, mode).calls
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["tool_calls"]


def test_a_wrong_option(client: Client) -> None:
    with pytest.raises(RefusedError, match=r"custom_params\.dlm\.mode = .{1,2}fast"):
        client.ask({**CHAT, **WAYS["body"]("fast")})
