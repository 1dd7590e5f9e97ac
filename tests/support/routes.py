"""A body for each of the server's routes that generate, and the text of what each answers."""

from __future__ import annotations

from typing import Any

MESSAGES = [{"role": "user", "content": "Count from 3."}]
LENGTH = 12
CHATS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "default", "messages": MESSAGES, "max_tokens": LENGTH, "temperature": 0},
    "/invocations": {"messages": MESSAGES, "max_tokens": LENGTH, "temperature": 0},
    "/v1/responses": {
        "model": "default",
        "input": MESSAGES[0]["content"],
        "max_output_tokens": LENGTH + 2,  # SGLang answers with two fewer
        "temperature": 0,
    },
    "/v1/messages": {"model": "default", "messages": MESSAGES, "max_tokens": LENGTH, "temperature": 0},
    "/api/chat": {
        "model": "default",
        "messages": MESSAGES,
        "stream": False,
        "options": {"num_predict": LENGTH, "temperature": 0, "seed": 1},
    },
}
TEXTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "default", "prompt": "abc", "max_tokens": LENGTH, "temperature": 0},
    "/generate": {"text": "abc", "sampling_params": {"max_new_tokens": LENGTH, "temperature": 0}},
    "/api/generate": {
        "model": "default",
        "prompt": "abc",
        "stream": False,
        "options": {"num_predict": LENGTH, "temperature": 0},
    },
    "/vertex_generate": {
        "instances": [{"text": "abc"}],
        "parameters": {"sampling_params": {"max_new_tokens": LENGTH, "temperature": 0}},
    },
}
GENERATES = {**CHATS, **TEXTS}


def asks(options: dict[str, Any]) -> dict[str, Any]:
    """The fields that ask for `options`."""
    return {"custom_params": {"dlm": options}}


def text_of(answer: Any) -> str:
    """The text of an answer, whichever route it is from."""
    if "predictions" in answer:
        answer = answer["predictions"][0]
    if "output" in answer:
        answer = {"text": answer["output"][0]["content"][0]["text"]}
    elif "choices" in answer:
        answer = answer["choices"][0]
    elif isinstance(answer.get("content"), list):
        answer = answer["content"][0]
    message = answer.get("message", answer)
    text: str = message.get("content", message.get("response", message.get("text")))
    return text
