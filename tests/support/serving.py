"""A real SGLang server in processes of its own, and the requests that tests send to it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import requests
import torch
from free_ports import free_port
from preloaded import Program
from processes import users_environment

ROOT = Path(__file__).parent.parent.parent
START_SECONDS = 300
ANSWER_SECONDS = 120

AUDITS = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1", "SGLANG_CHECK_KV_PAGE_INVARIANTS": "1"}
"""SGLang's checks of its pool before every step."""

RETRACTIONS = {"SGLANG_TEST_RETRACT": "1", **AUDITS}
"""SGLang's switch that retracts a request at every third forward, where two or more run."""

TESTED_OTHERWISE = {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0"}
"""`/health` answers at once: with a token for each question it sleeps for a second, and tests ask for tokens anyway."""


class Process(Protocol):
    """What a server runs in: a `subprocess.Popen`, or a program that is forked."""

    pid: int
    returncode: int | Any

    def poll(self) -> int | None:
        """Its exit code, once it has ended."""

    def wait(self) -> int:
        """Its exit code."""


class Server:
    """A server that was started; use as a context manager."""

    def __init__(self, process: Process, port: int, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self._process = process
        self._num_read = 0

    @classmethod
    def command(cls, *command: str, port: int, log: Path, env: Mapping[str, str] | None = None) -> Server:
        """Any command that starts a server at `port`."""
        environment = {**users_environment(), **TESTED_OTHERWISE, **(env or {})}
        with log.open("w") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, start_new_session=True
            )
        return cls(process, port, log)

    @classmethod
    def python(cls, *arguments: str, port: int, log: Path, env: Mapping[str, str] | None = None) -> Server:
        """`python` with `arguments` that start a server at `port`, forked from a process that has imported SGLang.

        Where there is a GPU it is started plainly: what has looked for one must not be forked.
        """
        if torch.accelerator.is_available():
            return cls.command(sys.executable, *arguments, port=port, log=log, env=env)
        return cls(Program(arguments, {**users_environment(), **TESTED_OTHERWISE, **(env or {})}, log), port, log)

    @classmethod
    def launch(cls, model_path: Path | str, *flags: str, log: Path, env: Mapping[str, str] | None = None) -> Server:
        """`python -m sglang.launch_server` on a free port."""
        port = free_port()
        module = ("-m", "sglang.launch_server", "--model-path", str(model_path), "--port", str(port))
        return cls.python(*module, *flags, port=port, log=log, env=env)

    def __enter__(self) -> Server:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended with {self._process.returncode}:\n{self.tail()}")
            if self.is_healthy():
                return self
            time.sleep(0.1)
        self.stop()
        raise TimeoutError(f"no server after {START_SECONDS} s:\n{self.tail()}")

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server and all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def tail(self, num_lines: int = 40) -> str:
        """The end of the server's log."""
        return "\n".join(self.log.read_text().splitlines()[-num_lines:])

    def is_healthy(self, route: str = "/health") -> bool:
        """Whether the server takes requests; at `/health_generate`, whether it answers them."""
        try:
            return requests.get(f"{self.url}{route}", timeout=5).status_code == 200
        except (requests.ConnectionError, requests.Timeout):
            return False

    def post(self, path: str, body: Mapping[str, Any]) -> requests.Response:
        """The answer to `body`."""
        return requests.post(f"{self.url}{path}", json=body, timeout=ANSWER_SECONDS)

    def generate(self, prompt: list[int] | str, max_new_tokens: int, **options: Any) -> dict[str, Any]:
        """One answer of `/generate`; see `generate_body`."""
        response = self.post("/generate", generate_body(prompt, max_new_tokens, **options))
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def generate_all(self, bodies: list[dict[str, Any]], concurrency: int) -> list[dict[str, Any]]:
        """The answers to all `bodies`, at most `concurrency` at a time."""

        def send(body: dict[str, Any]) -> dict[str, Any]:
            response = self.post("/generate", body)
            assert response.status_code == 200, response.text
            answer: dict[str, Any] = response.json()
            return answer

        with ThreadPoolExecutor(concurrency) as pool:
            return list(pool.map(send, bodies))

    def abandon(self, body: Mapping[str, Any]) -> None:
        """Ask `/generate` for a stream, and go away with its first piece."""
        asked = {**body, "stream": True}
        with requests.post(f"{self.url}/generate", json=asked, stream=True, timeout=ANSWER_SECONDS) as response:
            next(response.iter_lines())

    def flush_cache(self) -> None:
        """Empty the prefix cache, once the last request's overlapped step is over."""
        deadline = time.monotonic() + 30
        while requests.post(f"{self.url}/flush_cache", timeout=30).status_code != 200:
            assert time.monotonic() < deadline, self.tail()
            time.sleep(0.05)

    def forget(self) -> None:
        """Empty the prefix cache, and leave the KV of other tokens in the slots that are taken next."""
        self.flush_cache()
        self.generate([9] * 256, 8)
        self.flush_cache()

    def assert_nothing_leaked(self) -> None:
        """No KV slot is lost: SGLang's own audit, which runs whenever it idles, is content, with a cache and without.

        The audit is `free + cached + held = total`; it ends the scheduler where that does not hold.
        """
        self.flush_cache()
        with self.log.open() as log:
            log.seek(self._num_read)
            assert not re.search(r"memory leak|Traceback", log.read()), self.tail()
            self._num_read = log.tell()


def generate_body(
    prompt: list[int] | str,
    max_new_tokens: int,
    *,
    mode: str | None = None,
    dlm: Mapping[str, Any] | None = None,
    request: Mapping[str, Any] | None = None,
    **sampling: Any,
) -> dict[str, Any]:
    """A body for `/generate`: greedy unless `sampling` says otherwise, options from `mode` and `dlm`."""
    options = {**({"mode": mode} if mode else {}), **(dlm or {})}
    return {
        "text" if isinstance(prompt, str) else "input_ids": prompt,
        "sampling_params": {
            "temperature": 0,
            "max_new_tokens": max_new_tokens,
            **({"custom_params": {"dlm": options}} if options else {}),
            **sampling,
        },
        **(request or {}),
    }
