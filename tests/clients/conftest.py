"""One server of nano for all clients, started as users start it, by the Python that has SGLang."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests
from free_ports import free_port

ROOT = Path(__file__).parent.parent.parent
PYTHON = os.environ.get("DLM_SERVER_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
FLAGS = ("--dtype", "float32", "--tool-call-parser", "pythonic", "--constrained-json-disable-any-whitespace")
"""In float32 modes differ by no near-ties.

For tools nano was not trained: the grammar has to force a whole call. This parser's is that of a JSON schema, which is
without blanks and ends behind one call; those of structural tags hold a tool that is not strict to any JSON, allow
blanks for ever and go on behind the call.
"""
START_SECONDS = 300


@pytest.fixture(scope="session")
def server_python() -> str:
    """The Python that has SGLang."""
    return PYTHON


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the server."""
    with running(nano(*FLAGS), tmp_path_factory.mktemp("server") / "log") as address:
        yield address


def nano(*flags: str) -> list[str]:
    """The command of a server of nano, but for its port."""
    return [PYTHON, "-m", "sglang.launch_server", "--model-path", "nano", *flags]


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[str]:
    """The address of a server that `command`, with a port, starts; it ends with the context."""
    port = free_port()
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(address, process, log)
        yield address
    finally:
        with suppress(ProcessLookupError):  # it may have ended by itself
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
            time.sleep(0.2)
    raise TimeoutError(log.read_text()[-3000:])
