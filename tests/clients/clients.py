"""Clients of OpenAI's chats as people use them, each asked with the body of a request and giving what it understood."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Protocol

import litellm
import openai
import pytest
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI

HERE = Path(__file__).parent
NODE_MODULES = HERE.parent.parent / ".venv-clients" / "node_modules"
SECONDS = 60
Body = Mapping[str, Any]

_BOUND = ("response_format", "tool_choice", "parallel_tool_calls")
"""Fields that LangChain binds to a model, as it does tools."""

_OURS = ("custom_params",)
"""Fields that are none of OpenAI's; Python's clients send them by `extra_body`."""


@dataclass(frozen=True)
class Answer:
    """What a client made of an answer."""

    text: str
    calls: list[tuple[str, Any]]
    """Of tools: name and arguments."""
    logprobs: list[float]


@dataclass(frozen=True)
class Streamed:
    """What a client made of a stream."""

    pieces: list[str]
    """Of text."""
    calls: list[tuple[str, Any]]
    """Of tools: name and arguments, put together."""


class RefusedError(Exception):
    """A client told its user of an HTTP 400."""


class Client(Protocol):
    """A client of a server."""

    def __init__(self, url: str) -> None: ...

    def ask(self, body: Body) -> Answer:
        """The answer to a chat. Raises RefusedError."""

    def stream(self, body: Body) -> Streamed:
        """A streamed answer."""


def answer_in(completion: Mapping[str, Any]) -> Answer:
    """The answer in a chat completion, as JSON."""
    choice = completion["choices"][0]
    calls = [call["function"] for call in choice["message"].get("tool_calls") or ()]
    tokens = (choice.get("logprobs") or {}).get("content") or ()
    return Answer(
        choice["message"].get("content") or "",
        [(call["name"], json.loads(call["arguments"])) for call in calls],
        [token["logprob"] for token in tokens],
    )


def streamed_in(chunks: Iterable[Mapping[str, Any]]) -> Streamed:
    """The answer in the events of a stream, as JSON."""
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    names: dict[int, str] = defaultdict(str)
    arguments: dict[int, str] = defaultdict(str)
    for call in (call for delta in deltas for call in delta.get("tool_calls") or ()):
        names[call["index"]] += call["function"].get("name") or ""
        arguments[call["index"]] += call["function"].get("arguments") or ""
    calls = [(names[index], json.loads(arguments[index])) for index in sorted(names)]
    return Streamed([delta.get("content") or "" for delta in deltas], calls)


def _with_extra_body(body: Body) -> dict[str, Any]:
    """The body as arguments of Python's clients."""
    extra = {name: body[name] for name in _OURS if name in body}
    return {**{name: value for name, value in body.items() if name not in _OURS}, "extra_body": extra}


class OpenAI:
    """The `openai` package."""

    def __init__(self, url: str) -> None:
        self._chats = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0).chat.completions

    def ask(self, body: Body) -> Answer:
        try:
            return answer_in(self._chats.create(**_with_extra_body(body)).model_dump())
        except openai.BadRequestError as error:
            raise RefusedError(str(error)) from error

    def stream(self, body: Body) -> Streamed:
        chunks = self._chats.create(**_with_extra_body(body), stream=True)
        return streamed_in(chunk.model_dump() for chunk in chunks)


class LiteLLM:
    """The `litellm` package."""

    def __init__(self, url: str) -> None:
        self._server = {"api_base": f"{url}/v1", "api_key": "none", "max_retries": 0}

    def _arguments(self, body: Body) -> dict[str, Any]:
        return {**_with_extra_body(body), "model": f"openai/{body['model']}", **self._server}

    def ask(self, body: Body) -> Answer:
        try:
            return answer_in(litellm.completion(**self._arguments(body)).model_dump())
        except litellm.BadRequestError as error:
            raise RefusedError(str(error)) from error

    def stream(self, body: Body) -> Streamed:
        chunks = litellm.completion(**self._arguments(body), stream=True)
        return streamed_in(chunk.model_dump() for chunk in chunks)


class LangChain:
    """The `langchain-openai` package."""

    def __init__(self, url: str) -> None:
        self._url = url

    def _model(self, body: Body) -> Any:
        arguments = _with_extra_body(body)
        messages, tools = arguments.pop("messages"), arguments.pop("tools", None)
        bound = {name: arguments.pop(name) for name in _BOUND if name in arguments}
        model: Any = ChatOpenAI(base_url=f"{self._url}/v1", api_key="none", max_retries=0, **arguments)
        model = model.bind_tools(tools, **bound) if tools else model.bind(**bound)
        return model, messages

    def ask(self, body: Body) -> Answer:
        model, messages = self._model(body)
        try:
            message: AIMessage = model.invoke(messages)
        except openai.BadRequestError as error:
            raise RefusedError(str(error)) from error
        tokens = (message.response_metadata.get("logprobs") or {}).get("content") or ()
        calls = [(call["name"], call["args"]) for call in message.tool_calls]
        return Answer(str(message.content), calls, [token["logprob"] for token in tokens])

    def stream(self, body: Body) -> Streamed:
        model, messages = self._model(body)
        chunks = list(model.stream(messages))
        whole = reduce(add, chunks)
        return Streamed(
            [str(chunk.content) for chunk in chunks], [(call["name"], call["args"]) for call in whole.tool_calls]
        )


class _Program:
    """A program that is handed a body and prints the server's answer, or the events of its stream, as JSON."""

    def command(self, is_stream: bool) -> list[str]:
        raise NotImplementedError

    def _run(self, body: Body, is_stream: bool) -> str:
        sent = json.dumps({**body, "stream": True} if is_stream else body)
        environment = {**os.environ, "NODE_PATH": str(NODE_MODULES)}
        done = subprocess.run(
            self.command(is_stream), input=sent, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
        if done.returncode:
            raise RefusedError(done.stdout + done.stderr)
        return done.stdout

    def ask(self, body: Body) -> Answer:
        return answer_in(json.loads(self._run(body, is_stream=False)))

    def stream(self, body: Body) -> Streamed:
        lines = self._run(body, is_stream=True).splitlines()
        return streamed_in(json.loads(line.removeprefix("data: ")) for line in lines if line.endswith("}"))


class Curl(_Program):
    """The command."""

    def __init__(self, url: str) -> None:
        self._url = url

    def command(self, is_stream: bool) -> list[str]:
        json_body = ("-H", "Content-Type: application/json", "-d", "@-")
        return ["curl", "-sN", "--fail-with-body", f"{self._url}/v1/chat/completions", *json_body]


class JavaScript(_Program):
    """The `openai` package of npm."""

    def __init__(self, url: str) -> None:
        if shutil.which("node") is None:
            pytest.skip("there is no node")
        if not (NODE_MODULES / "openai").is_dir():
            pytest.skip("npm could not install openai")
        self._url = url

    def command(self, is_stream: bool) -> list[str]:
        return ["node", str(HERE / "chat.cjs"), f"{self._url}/v1"]


CLIENTS: tuple[type[Client], ...] = (OpenAI, Curl, JavaScript, LangChain, LiteLLM)
