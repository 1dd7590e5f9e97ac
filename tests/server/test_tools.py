"""Calls of tools on a real server: the same in every mode that honours a grammar, whole and streamed."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from routes import MESSAGES, asks
from serving import Server

CITIES = ("Lima", "Rome")
CITY = {"type": "object", "properties": {"city": {"enum": CITIES}}, "required": ["city"]}
NAMES = ("visit", "leave")
CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": MESSAGES,
    "max_tokens": 120,
    "temperature": 0,
    "tools": [{"type": "function", "function": {"name": name, "parameters": CITY}} for name in NAMES],
    "parallel_tool_calls": False,
}
NAMED = {"tool_choice": {"type": "function", "function": {"name": "leave"}}}
ASKED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "required": ({"tool_choice": "required"}, NAMES),
    "named": (NAMED, ("leave",)),
    "behind text": (
        {
            "regex": "So [a-z]{3}: <tool_call>(visit|leave)\n"
            "<arg_key>city</arg_key>\n<arg_value>(Lima|Rome)</arg_value>\n</tool_call>"
        },
        NAMES,
    ),
}
"""What is asked, and the tools that may be called; the model knows none, so each time a grammar leaves it no choice."""

WAYS: dict[str, dict[str, Any]] = {
    "autoregressive": {"mode": "autoregressive"},
    "in turn": {"mode": "self_speculation"},
    "in one forward": {"mode": "self_speculation", "speculation": "one_forward", "budget": 48},
}

Answer = tuple[str, list[tuple[str, str]], str]
"""Text, calls by name and arguments, and why it ended."""


def whole(response: dict[str, Any]) -> Answer:
    [choice] = response["choices"]
    message = choice["message"]
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]]
    return message["content"] or "", calls, choice["finish_reason"]


def streamed(content: str) -> Answer:
    """What the pieces of a stream make together: of each call the name comes first and once."""
    events = [json.loads(line[6:]) for line in content.splitlines() if line.startswith("data: {")]
    choices = [choice for event in events for choice in event["choices"]]
    calls: list[tuple[str, str]] = []
    for part in (part for choice in choices for part in choice["delta"].get("tool_calls") or ()):
        function = part["function"]
        if function["name"]:
            assert part["index"] == len(calls)
            calls.append((function["name"], ""))
        name, before = calls[part["index"]]
        calls[part["index"]] = (name, before + function["arguments"])
    [ended] = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices), calls, ended


@pytest.mark.parametrize("asked", ASKED)
def test_calls_are_the_autoregressive_ones(with_adapter: Server, asked: str) -> None:
    """In all ways at once, whole and streamed."""
    fields, names = ASKED[asked]
    bodies = [
        {**CHAT, **fields, **asks(way), "stream": is_stream}
        for way, is_stream in itertools.product(WAYS.values(), (False, True))
    ]
    with ThreadPoolExecutor(len(bodies)) as pool:
        responses = list(pool.map(partial(with_adapter.post, "/v1/chat/completions"), bodies))
    assert [response.status_code for response in responses] == [200] * len(bodies)
    first, *others = [whole(response.json()) for response in responses[::2]]
    assert others == [first] * len(others)
    assert len({response.json()["usage"]["completion_tokens"] for response in responses[::2]}) == 1
    for text, calls, ended in (streamed(response.text) for response in responses[1::2]):
        assert (text.rstrip(), calls, ended) == first  # SGLang's parser strips the text of a whole answer

    text, [(name, arguments)], ended = first
    assert bool(text) == (asked == "behind text")
    assert name in names
    assert json.loads(arguments) in [{"city": city} for city in CITIES]
    assert ended == "tool_calls"


@pytest.mark.parametrize("is_stream", [False, True])
def test_diffusion_refuses_a_named_tool(with_adapter: Server, is_stream: bool) -> None:
    body = {**CHAT, **NAMED, **asks({"mode": "diffusion"}), "stream": is_stream}
    response = with_adapter.post("/v1/chat/completions", body)
    assert response.status_code == 400
    assert "mode = 'diffusion': does not support tools;" in response.json()["error"]["message"]
