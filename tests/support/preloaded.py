"""Python programs forked from a process that has imported SGLang already, which takes longer than most of them run.

What is forked begins as a fresh interpreter would, but for what it finds imported: SGLang as yet without plugins. It
has an environment, arguments, a session and an output of its own. Child processes that it starts through
`multiprocessing` are forked from the same state, before the program begins.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ADDRESS_VARIABLE = "DLM_TEST_PRELOADED"
"""Names the socket, for all processes of a parallel run."""

ROOT = Path(__file__).parent.parent.parent

NUM_SPARE = 3
"""Child processes of an SGLang server: the schedulers of up to two ranks, and the detokenizer."""

NUM_REPLICAS = 2
"""Child processes of one of these where there are replicas: their schedulers."""

MODULES = (
    "sglang.benchmark.one_batch",
    "sglang.srt.entrypoints.http_server",
    "sglang.srt.managers.detokenizer_manager",
    "sglang.srt.managers.scheduler",
)

READ_AT_IMPORT = {"sglang.srt.managers.scheduler": "TEST_RETRACT"}
"""What SGLang took from the environment when it was imported, and takes from the program's environment anew."""

HUB_CACHE = "HF_HUB_CACHE"
"""What `huggingface_hub` took, likewise; it reads its own constant each time."""

IMPORT_SECONDS = 600
MAX_DESCRIPTORS = 1024


# --- For tests ---


class Program:
    """A program that was started; as much of `subprocess.Popen` as tests use."""

    def __init__(
        self, arguments: Sequence[str], env: Mapping[str, str], output: Path, errors: Path | None = None
    ) -> None:
        """Start `arguments`, which are `-m`, a module and its arguments, or a script and its arguments, at the root.

        It writes its standard output to `output`, and its standard error there too or to `errors`.
        """
        self.returncode: int | None = None
        files = [str(output), str(errors or output)]
        request = {"arguments": [str(argument) for argument in arguments], "files": files, "env": dict(env)}
        self._connection = _connect(shared_address(env))
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        self.pid = int(self._connection.recv(64))

    def poll(self) -> int | None:
        """The exit code, or None while the program runs."""
        with contextlib.suppress(TimeoutError):
            self.wait(0.001)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; raises TimeoutError while the program runs."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            received = self._connection.recv(64)
            self.returncode = int(received) if received else -signal.SIGKILL
            self._connection.close()
        return self.returncode


def shared_address(env: Mapping[str, str]) -> str:
    """The socket of the process that this run of the tests shares, which is started in `env` if it is not there."""
    if ADDRESS_VARIABLE not in os.environ:
        folder = tempfile.mkdtemp(prefix="preloaded-")
        address = os.environ[ADDRESS_VARIABLE] = str(Path(folder) / "socket")
        process = subprocess.Popen([sys.executable, __file__, address], stdin=subprocess.PIPE, cwd=ROOT, env=env)
        atexit.register(_end, process, folder)
    return os.environ[ADDRESS_VARIABLE]


def _end(process: subprocess.Popen[bytes], folder: str) -> None:
    """Let the process end, as it does with its standard input."""
    assert process.stdin is not None
    process.stdin.close()
    process.wait()
    shutil.rmtree(folder)


def _connect(address: str) -> socket.socket:
    """A connection, once the modules are imported."""
    deadline = time.monotonic() + IMPORT_SECONDS
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(address)
        except OSError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return connection


# --- The process ---


def _serve(address: str) -> None:
    """Start programs until the process that wants them has ended."""
    sys.path.insert(0, os.getcwd())
    for module in MODULES:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ)
    waiting.register(sys.stdin, selectors.EVENT_READ)
    running: dict[int, tuple[int, socket.socket]] = {}  # by the descriptor that tells of its end
    while True:
        for key, _ in waiting.select():
            if key.fileobj is sys.stdin:
                for pid, _ in running.values():
                    _kill(pid)
                return
            if key.fileobj is listener:
                connection, _ = listener.accept()
                pid = _start(connection)
                ended = os.pidfd_open(pid)
                running[ended] = (pid, connection)
                waiting.register(ended, selectors.EVENT_READ)
            else:
                waiting.unregister(key.fd)
                os.close(key.fd)
                pid, connection = running.pop(key.fd)
                _, status = os.waitpid(pid, 0)
                with contextlib.suppress(OSError):
                    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                connection.close()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _start(connection: socket.socket) -> int:
    """Fork the program that is asked for; its process id is sent back."""
    request = json.loads(connection.makefile("r").readline())
    pid = os.fork()
    if pid:
        connection.sendall(f"{pid}\n".encode())
        return pid
    code = 1
    try:
        os.setsid()
        _take_over(request)
        code = _run(request["arguments"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _take_over(request: Mapping[str, Any]) -> None:
    """Become the process that the request describes, with none of this one's files."""
    output, errors = request["files"]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1 if errors == output else os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.closerange(3, MAX_DESCRIPTORS)
    sys.path[:0] = [folder for folder in request["env"].get("PYTHONPATH", "").split(os.pathsep) if folder]
    _set_environment(request["env"])


def _set_environment(env: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)
    from sglang.srt.environ import envs

    for module, name in READ_AT_IMPORT.items():
        assert hasattr(sys.modules[module], name)
        setattr(sys.modules[module], name, getattr(envs, f"SGLANG_{name}").get())
    if HUB_CACHE in env:
        setattr(sys.modules["huggingface_hub.constants"], HUB_CACHE, env[HUB_CACHE])


def _run(arguments: Sequence[str]) -> int:
    """Run a program as `python` would; returns its exit code."""
    from spare_processes import fork_spares

    fork_spares(NUM_SPARE, NUM_REPLICAS if "--dp" in arguments else 0)
    try:
        if arguments[0] == "-m":
            sys.argv = list(arguments[1:])
            sys.path.insert(0, os.getcwd())
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(arguments)
            sys.path.insert(0, str(Path(arguments[0]).parent))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    _serve(sys.argv[1])
