"""A server that speaks as much of SGLang's HTTP API, with dlm-serve's statistics, as the commands use.

Its tokens are the bytes of the text. What it answers is given by a function of the question and the options; in how
many forward passes it does so follows from the mode.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

BLOCK_LENGTH = 8
EMITTED = {"autoregressive": 1, "diffusion": BLOCK_LENGTH, "self_speculation": 4}
"""Tokens that come together behind the first, which is the prefill's."""
FORWARDS = {"autoregressive": 1, "diffusion": 3, "self_speculation": 2}
"""Forward passes that they take."""

THINK, NO_THINK = "<think>", "<think></think>"

Body = dict[str, Any]
Answers = Callable[[str, Body], str]
"""The answer to a question, given the options of the request."""


class FakeServer(AbstractContextManager["FakeServer"]):
    """Listens on a free port of this machine, in threads of this process."""

    def __init__(self, answers: Answers, *, can_think: bool = False, delay: float = 0.0) -> None:
        self.answers, self.can_think, self.delay = answers, can_think, delay
        self.requests: list[Body] = []
        """The bodies of all `/generate` requests that were answered."""
        self.most_at_a_time = 0
        self.num_abandoned = 0
        """Streams that the client closed before their end."""
        self.has_plugin = True
        self.modes: tuple[str, ...] = tuple(EMITTED)
        """Those of the model."""
        self.threshold_algorithm: str | None = None
        self.api_key: str | None = None
        self._num_running = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()

    def prompts(self) -> list[str]:
        """What was answered, as it was rendered."""
        return [bytes(body["input_ids"]).decode() for body in self.requests]

    def render(self, messages: list[dict[str, str]], template: Body) -> str:
        """The chat template."""
        turns = "".join(f"[{message['role']}]{message['content']}\n" for message in messages)
        thought = (THINK if template.get("enable_thinking") else NO_THINK) if self.can_think else ""
        return f"{turns}[assistant]{thought}"

    def answer_to(self, body: Body) -> Iterator[Body]:
        """The answer to a `/generate` request as it grows."""
        options = body["sampling_params"]["custom_params"]["dlm"]
        rendered = bytes(body["input_ids"]).decode()
        question = rendered.rpartition("[user]")[2].partition("\n[assistant]")[0]
        whole = self.answers(question, options).encode()
        limit = body["sampling_params"]["max_new_tokens"]
        ids = list(whole[:limit])
        mode = "self_speculation" if options["mode"] == "auto" else options["mode"]
        step = EMITTED[mode]
        ends = [1, *range(1 + step, len(ids), step), len(ids)] if len(ids) > 1 else [len(ids)]
        for number, end in enumerate(ends):
            nfe = number * FORWARDS[mode]
            statistics = {
                "mode": mode,
                "nfe": nfe,
                "tokens_per_forward": round(end / nfe, 4) if nfe else None,
                "acceptance_length": 4.0 if mode == "self_speculation" and nfe else None,
                "block_length": 1 if mode == "autoregressive" else BLOCK_LENGTH,
                "mode_switches": 0,
                "tokens": {mode: end - 1},
            }
            is_last = end == len(ids)
            reason = {"type": "length" if len(whole) > len(ids) else "stop"} if is_last else None
            about: Body = {
                "finish_reason": reason,
                "completion_tokens": end,
                **({"dlm": statistics} if self.has_plugin else {}),
            }
            yield {"text": bytes(ids[:end]).decode(errors="replace"), "output_ids": ids[:end], "meta_info": about}

    def log_probabilities(self, body: Body) -> Body:
        """Of the tokens behind `logprob_start_len`: -1 for the first token of a block of the answer, else -0.25."""
        ids, start = body["input_ids"], body["logprob_start_len"]
        losses = [1.0 if index % BLOCK_LENGTH == 0 else 0.25 for index in range(len(ids) - start - 1)]
        entries = [[-loss, token, None] for loss, token in zip(losses, ids[start + 1 :], strict=True)]
        return {
            "text": "",
            "output_ids": [],
            "meta_info": {"input_token_logprobs": [[None, ids[start], None], *entries]},
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                names = ["tiny", *(f"tiny:{mode}" for mode in fake.modes if fake.has_plugin)]
                found: dict[str, Body] = {
                    "/server_info": {"version": "9.9.9", "model_path": "tiny"},
                    "/dlm/status": {"threshold_algorithm": fake.threshold_algorithm},
                    "/v1/models": {"data": [{"id": name} for name in names]},
                }
                if self._may_enter():
                    self._send(200 if self.path in found else 404, found.get(self.path, {}))

            def _may_enter(self) -> bool:
                if fake.api_key in (None, (self.headers["Authorization"] or "").removeprefix("Bearer ")):
                    return True
                self._send(401, {"error": "Unauthorized"})
                return False

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not self._may_enter():
                    return
                if self.path == "/tokenize":
                    rendered = fake.render(body["messages"], body.get("chat_template_kwargs", {}))
                    self._send(200, {"tokens": list(rendered.encode())})
                elif body.get("return_logprob"):
                    self._send(200, fake.log_probabilities(body))
                elif (body["sampling_params"]["max_new_tokens"] or 1) > 1000:
                    self._send(400, {"error": "max_new_tokens = 1001: at most 1000; ask for fewer."})
                else:
                    with fake._counted(body):
                        self._stream(body) if body.get("stream") else self._whole(body)

            def _whole(self, body: Body) -> None:
                time.sleep(fake.delay)
                *_, whole = fake.answer_to(body)
                self._send(200, whole)

            def _stream(self, body: Body) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                try:
                    for part in fake.answer_to(body):
                        self.wfile.write(f"data: {json.dumps(part)}\n\n".encode())
                        time.sleep(fake.delay)
                    self.wfile.write(b"data: [DONE]\n\n")
                except (BrokenPipeError, ConnectionResetError):
                    fake.num_abandoned += 1

            def _send(self, status: int, content: Body) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing: the terminal is the test's."""

        return Handler

    @contextmanager
    def _counted(self, body: Body) -> Iterator[None]:
        """A request while it is worked on."""
        with self._lock:
            self.requests.append(body)
            self._num_running += 1
            self.most_at_a_time = max(self.most_at_a_time, self._num_running)
        yield
        with self._lock:
            self._num_running -= 1
