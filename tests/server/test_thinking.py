"""A reasoning parser tells thinking from the answer, in every mode as autoregressively."""

from __future__ import annotations

import json
from typing import Any

import pytest
from serving import Server

END_OF_THINKING = "13"
"""The id of `</think>`, a special token, as a key of `logit_bias`."""


def chat(server: Server, mode: str, *, think: bool = False, **fields: Any) -> dict[str, Any]:
    """A chat's answer."""
    response = server.post("/v1/chat/completions", body_of(mode, think=think, **fields))
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def body_of(mode: str, *, think: bool, **fields: Any) -> dict[str, Any]:
    """The body of a chat, greedy."""
    return {
        "model": f"default:{mode}",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 40,
        "temperature": 0,
        **({"chat_template_kwargs": {"enable_thinking": True}} if think else {}),
        **fields,
    }


@pytest.mark.parametrize("mode", ["autoregressive", "diffusion", "self_speculation"])
def test_an_ordinary_chat_is_all_answer(with_adapter: Server, mode: str) -> None:
    found = chat(with_adapter, mode)
    assert found["choices"][0]["message"]["content"]
    assert found["choices"][0]["message"]["reasoning_content"] is None
    assert found["usage"]["reasoning_tokens"] == 0


@pytest.mark.parametrize("fields", [{"max_tokens": 5}, {"max_tokens": 33}, {}, {"stop": ["\ufffd"]}], ids=str)
def test_thinking_is_counted_as_autoregressively(with_adapter: Server, fields: dict[str, Any]) -> None:
    modes = ("autoregressive", "self_speculation")
    one, other = (chat(with_adapter, mode, think=True, **fields) for mode in modes)
    assert one["usage"] == other["usage"] | {"prompt_tokens_details": one["usage"]["prompt_tokens_details"]}
    assert one["choices"][0]["message"] == other["choices"][0]["message"]
    assert 0 < one["usage"]["reasoning_tokens"] <= one["usage"]["completion_tokens"]


def test_the_end_of_thinking_is_seen_where_it_is_a_special_token(with_adapter: Server) -> None:
    asked = {"logit_bias": {END_OF_THINKING: 100.0}, "max_tokens": 4}
    found = chat(with_adapter, "autoregressive", think=True, **asked)
    assert found["choices"][0]["message"]["content"] == "</think>" * 3
    assert found["usage"]["reasoning_tokens"] == 1
    stream = with_adapter.post(
        "/v1/chat/completions", {**body_of("autoregressive", think=True, **asked), "stream": True}
    )
    sent = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in sent]
    assert "".join(delta.get("content") or "" for delta in deltas) == "</think>" * 3
