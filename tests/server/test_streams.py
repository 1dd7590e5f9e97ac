"""What streams promise, on every route: what was sent is final, one end, exact usage, whole characters."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import requests
from routes import GENERATES, LENGTH, asks, text_of
from serving import ANSWER_SECONDS, Server

MODES = ("autoregressive", "diffusion", "self_speculation")
LONG = 3 * LENGTH
STREAMS = [path for path in GENERATES if path != "/vertex_generate"]
WITH_USAGE = ("/v1/chat/completions", "/v1/completions")
"""Those whose streams count tokens, if they are asked to."""


def body_of(path: str, mode: str, stop: list[str], stream: bool, length: int = LONG) -> dict[str, Any]:
    """A body for `path`, whose answer takes several steps."""
    body = {**GENERATES[path], **asks({"mode": mode}), "stream": stream}
    for name in ("max_tokens", "max_output_tokens"):
        if name in body:
            body[name] = length
    if "options" in body:
        body["options"] = {**body["options"], "num_predict": length, "stop": stop}
    elif "sampling_params" in body:
        body["sampling_params"] = {**body["sampling_params"], "max_new_tokens": length, "stop": stop}
    else:
        body["stop_sequences" if path == "/v1/messages" else "stop"] = stop
    if stream and path in WITH_USAGE:
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    return body


def events(text: str) -> Iterator[dict[str, Any]]:
    """The events of a stream, as JSON objects."""
    for line in text.splitlines():
        content = line.removeprefix("data: ")
        if content.startswith("{"):
            yield json.loads(content)


def piece_of(event: dict[str, Any]) -> str:
    """The text that an event adds."""
    if event.get("choices"):
        choice = event["choices"][0]
        return choice.get("text") or choice.get("delta", {}).get("content") or ""
    if event.get("type") in ("content_block_delta", "response.output_text.delta"):
        delta = event["delta"]
        return delta if isinstance(delta, str) else delta["text"]
    return text_of(event) if "done" in event else ""


def is_end(event: dict[str, Any]) -> bool:
    """Whether an event says why the answer ended."""
    if event.get("choices"):
        return event["choices"][0]["finish_reason"] is not None
    return event.get("done", False) or event.get("type") in (
        "message_stop",
        "response.completed",
        "response.incomplete",
    )


def answers(server: Server, path: str, mode: str) -> list[tuple[dict[str, Any], str]]:
    """A whole answer and the stream of the same, without a stop and with one; all are asked at once."""
    bodies = [body_of(path, mode, stop, stream=stream) for stop in ([], ["x"]) for stream in (False, True)]
    with ThreadPoolExecutor(len(bodies)) as pool:
        found = list(pool.map(partial(server.post, path), bodies))
    assert [response.status_code for response in found] == [200] * len(bodies)
    return [(whole.json(), stream.content.decode()) for whole, stream in zip(found[::2], found[1::2], strict=True)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path", STREAMS)
def test_a_stream_is_the_whole_answer(trained: Server, path: str, mode: str) -> None:
    for whole, stream in answers(trained, path, mode):
        sent = list(events(stream))
        if path == "/generate":
            pieces = [event["text"] for event in sent]
            assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(pieces))
            assert pieces[-1] == whole["text"]
            assert [bool(event["meta_info"]["finish_reason"]) for event in sent] == [*[False] * (len(sent) - 1), True]
        else:
            assert "".join(map(piece_of, sent)) == text_of(whole)
            assert sum(map(is_end, sent)) == 1
        if path in WITH_USAGE:
            counted = [event["usage"]["completion_tokens"] for event in sent if event.get("usage")]
            assert counted == sorted(counted)
            assert counted[-1] == whole["usage"]["completion_tokens"]
            assert stream.count("data: [DONE]") == 1
            assert sent[-1]["choices"] == []
            assert sent[-1]["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]


@pytest.mark.parametrize("path", STREAMS)
def test_a_request_ends_when_its_client_leaves(trained: Server, path: str) -> None:
    """At once, and whatever the route: the cache cannot be emptied while a request runs."""
    body = body_of(path, "autoregressive", [], stream=True, length=4000)
    with requests.post(f"{trained.url}{path}", json=body, stream=True, timeout=ANSWER_SECONDS) as response:
        lines = response.iter_lines()
        while not piece_of_line(next(lines)):
            pass
    left = time.monotonic()
    trained.flush_cache()
    assert time.monotonic() - left < 1


def piece_of_line(line: bytes) -> bool:
    """Whether a line of a stream adds text."""
    return any(event.get("text") or piece_of(event) for event in events(line.decode()))
