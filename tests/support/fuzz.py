"""Send random requests to a server: none may be answered by 5xx or cut off, and nothing may be lost.

`make fuzz` starts a small server of each family and sends thousands.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import requests
from random_requests import Request, Requests
from serving import ANSWER_SECONDS, RETRACTIONS, ROOT, Server

CHECKPOINTS = (
    "tests/data/nld-trained-b8",
    "tests/data/nld-trained-b32-lora",
    "tests/data/efficient_dlm/edlm-b8",
    "tests/data/sdlm/sdlm-d4-tied",
    "tests/data/bd3lm/bd3lm-b8",
    "nano",
)
FLAGS = ("--context-length", "256", "--max-total-tokens", "1024")
"""A pool that a few requests fill."""

CONCURRENCY = 12
CHECKED_EVERY = 100
RESTED_SECONDS = 60

END_OF_STREAM = {"/v1/messages": '{"type":"message_stop"}'}
"""Of routes whose streams do not end as OpenAI's, the last event."""

ALARM = re.compile(r"^.*(?:memory leak|Traceback)(?:.*\n(?!\[20))*", re.MULTILINE)
"""What a server's log must not have in it: SGLang's audit of its pool, or an error that nobody expected."""

REFUSED = re.compile(
    r"^.*Error converting Anthropic request:.*\nTraceback.*\n(?:  .*\n)*ValueError: .*\n", re.MULTILINE
)
"""What SGLang logs of some refusals, which it answers with 400."""


class Fuzzer:
    """Sends the random requests of a seed to a server."""

    def __init__(self, server: Server, seed: int) -> None:
        self._server = server
        self._seed = seed
        self._has_ended = False
        self._log_length = len(server.log.read_text())
        self.statuses: Counter[str] = Counter()

    @cached_property
    def drawn(self) -> Requests:
        """All that could be sent."""
        return Requests(requests.get(f"{self._server.url}/openapi.json", timeout=ANSWER_SECONDS).json(), self._seed)

    def run(self, numbers: range) -> list[str]:
        """Send the requests with these `numbers`, several at a time; return what went wrong, up to the server's end."""
        found: list[str] = []
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            for start in range(numbers.start, numbers.stop, CHECKED_EVERY):
                batch = range(start, min(start + CHECKED_EVERY, numbers.stop))
                found += [problem for problem in pool.map(self._problem, batch) if problem is not None]
                found += self._problems_of_the_server(batch)
                if self._has_ended:
                    break
        return found

    def send(self, request: Request) -> str | None:
        """What is wrong with the answer to `request`; None if nothing is, or if the client has left before its end."""
        patience = ANSWER_SECONDS if request.leaves_after is None else request.leaves_after
        deadline = time.monotonic() + patience
        url, content = self._server.url + request.path, json.dumps(request.body).encode()
        headers = {"Content-Type": "application/json"}
        try:
            with requests.post(url, content, headers=headers, timeout=patience, stream=True) as response:
                chunks = []
                for chunk in response.iter_content(None):
                    chunks.append(chunk)
                    if time.monotonic() > deadline:
                        raise requests.Timeout
        except requests.Timeout:
            self.statuses["left"] += 1
            return None if request.leaves_after is not None else f"no answer after {ANSWER_SECONDS} s"
        except requests.RequestException as error:
            if request.leaves_after is not None and "timed out" in str(error):
                self.statuses["left"] += 1
                return None
            self._has_ended = not self._server.is_healthy()
            return f"{type(error).__name__}: {error}"
        self.statuses[str(response.status_code)] += 1
        return problem_with(request, response, b"".join(chunks).decode())

    def _problem(self, number: int) -> str | None:
        if self._has_ended:
            return None
        request = self.drawn[number]
        problem = self.send(request)
        return None if problem is None else f"{number}: {problem}\n  {request}"

    def _problems_of_the_server(self, batch: range) -> list[str]:
        """Whether it lives, rests once all is answered, and has lost nothing."""
        deadline = time.monotonic() + RESTED_SECONDS
        while not self._server.is_healthy("/health_generate"):
            if self._has_ended or time.monotonic() > deadline:
                self._has_ended = True
                return [f"not healthy after {batch}:\n{self._server.tail()}"]
            time.sleep(0.1)
        self._server.flush_cache()
        news = self._server.log.read_text()[self._log_length :]
        self._log_length += len(news)
        return [f"in the log after {batch}: {found}" for found in ALARM.findall(REFUSED.sub("", news))]


def problem_with(request: Request, response: requests.Response, text: str) -> str | None:
    """What is wrong with a whole answer; None if nothing is."""
    status = response.status_code
    if status >= 500:
        return f"HTTP {status}: {text[:300]}"
    if request.unknown is not None and status != 400:
        return f"HTTP {status} in spite of an unknown option"
    if request.unknown is not None and request.is_fine and f"custom_params.dlm.{request.unknown} = " not in text:
        return f"the unknown option is not named: {text[:300]}"
    is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
    return _problem_with_events(text, END_OF_STREAM.get(request.path, "[DONE]")) if is_stream else None


def _problem_with_events(text: str, end: str) -> str | None:
    """What is wrong with a stream that has ended, as its last event says; None if nothing is."""
    events = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    if not events or events.pop() != end:
        return f"the stream was cut off: {text[-300:]}"
    for event in map(json.loads, events):
        error = event.get("error")
        code = error.get("code") if isinstance(error, dict) else None
        if isinstance(code, int) and code >= 500:
            return f"an event of {code}: {event}"
    return None


def main() -> None:
    """Start a server of each checkpoint in turn and send it random requests; end with the first that fails."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("models", nargs="*", default=CHECKPOINTS, help="checkpoints to serve")
    parser.add_argument("--count", type=int, default=4000, help="requests to each")
    parser.add_argument("--start", type=int, default=0, help="number of the first request, to go on from there")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for model in arguments.models:
        log = Path(tempfile.mkdtemp(prefix="fuzz-")) / "log"
        path = ROOT / model if (ROOT / model).exists() else model
        with Server.launch(path, *FLAGS, log=log, env=RETRACTIONS) as server:
            fuzzer = Fuzzer(server, arguments.seed)
            started = time.monotonic()
            problems = fuzzer.run(range(arguments.start, arguments.start + arguments.count))
            counts = ", ".join(f"{count} {status}" for status, count in sorted(fuzzer.statuses.items()))
            sys.stdout.write(f"{model}: {counts} in {time.monotonic() - started:.0f} s\n")
            if problems:
                sys.exit("\n".join([f"seed {arguments.seed}, log {log}:", *problems]))


if __name__ == "__main__":
    main()
