"""The server of `vllm serve`, over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import ENVIRONMENT
from free_ports import free_port
from golden import TRAINED

START_SECONDS = 400
FLAGS = ("--dtype", "float32", "--max-model-len", "512", "--enforce-eager", "--max-num-seqs", "8")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the server."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    # What `vllm serve` starts; that command itself looks for a distribution named vllm, which the CPU's is not.
    program = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(TRAINED)]
    command = [*program, "--served-model-name", "tiny", "--port", str(port), *FLAGS]
    environment = {**os.environ, **ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(address, process, log)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once the server takes requests."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(log.read_text()[-3000:])
        try:
            if requests.get(f"{address}/health", timeout=5).status_code == 200:
                return
        except (requests.ConnectionError, requests.Timeout):
            time.sleep(0.5)
    raise TimeoutError(log.read_text()[-3000:])


def complete(url: str, **fields: Any) -> requests.Response:
    """Ask for a completion, greedy unless `fields` say otherwise."""
    body = {"model": "tiny", "prompt": [1, 145, 20, 33], "max_tokens": 16, "temperature": 0, **fields}
    return requests.post(f"{url}/v1/completions", json=body, timeout=120)


def test_modes_by_http(url: str) -> None:
    answers = {
        mode: complete(url, vllm_xargs={"mode": mode}).json()["choices"][0]["text"]
        for mode in ("auto", "autoregressive", "self_speculation", "diffusion")
    }
    assert answers["auto"] == answers["autoregressive"] == answers["self_speculation"]
    assert answers["diffusion"]


def test_a_chat_says_its_forwards(url: str) -> None:
    def forwards(mode: str) -> int:
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 16,
            "temperature": 0,
            "ignore_eos": True,
            "vllm_xargs": {"mode": mode},
        }
        answer = requests.post(f"{url}/v1/chat/completions", json=body, timeout=120).json()
        found: int = answer["metrics"]["speculative_decoding"]["num_spec_steps"]
        return found

    assert forwards("autoregressive") == 15
    assert forwards("self_speculation") < 15


def test_a_refusal_is_http_400_with_field_limit_and_remedy(url: str) -> None:
    refused = complete(url, vllm_xargs={"mode": "self_speculation", "threshold": 2})
    assert refused.status_code == 400
    assert "vllm_xargs.threshold = 2" in refused.text


def test_a_stream_has_the_same_text(url: str) -> None:
    whole = complete(url).json()["choices"][0]["text"]
    with complete(url, stream=True) as streamed:
        lines = [line for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines) == whole
