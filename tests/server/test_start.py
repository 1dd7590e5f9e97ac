"""Starting: what cannot be served ends with a clear message and a non-zero exit, what can be starts without weights."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
from golden import TRAINED
from preloaded import Program
from processes import users_environment
from serving import START_SECONDS, Server

PRETEND_OTHER_VERSION = """
import importlib.metadata, runpy, sys
real = importlib.metadata.version
importlib.metadata.version = lambda name: "0.4.0" if name == "sglang" else real(name)
sys.argv = ["sglang.launch_server", "--model-path", {model!r}]
runpy.run_module("sglang.launch_server", run_name="__main__")
"""


@pytest.fixture
def without_weights(tmp_path: Path) -> Path:
    """A checkpoint folder that holds no weights."""
    folder = tmp_path / "model"
    shutil.copytree(TRAINED, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def test_incomplete_checkpoint(without_weights: Path, tmp_path: Path) -> None:
    """The other ways in which a checkpoint can be wrong are unit tests of `Checkpoint`; they end here too."""
    command, log = ["-m", "sglang.launch_server", "--model-path", str(without_weights)], tmp_path / "log"
    assert Program(command, users_environment(), log).wait(START_SECONDS) != 0
    message = log.read_text().splitlines()[-1]
    assert "CheckpointError: weights" in message
    assert "no *.safetensors file" in message


def test_help(tmp_path: Path) -> None:
    """It ends with what is ours."""
    log = tmp_path / "log"
    assert Program(["-m", "sglang.launch_server", "--help"], users_environment(), log).wait(START_SECONDS) == 0
    ours = "".join(log.read_text().split()).partition("dlm-serveisinstalled")[2]  # lines may end inside words
    words = ("nemotron-labs-diffusion", "--dllm-algorithm-config", "generation.block_length", "routing.widths")
    assert all(word in ours for word in words)


def test_a_port_in_use(tmp_path: Path) -> None:
    """Found before anything is loaded."""
    log = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = str(listening.getsockname()[1])
        command = ["-m", "sglang.launch_server", "--model-path", str(TRAINED), "--port", port]
        assert Program(command, users_environment(), log).wait(START_SECONDS) != 0
    shown = log.read_text()
    assert f"ConfigError: --port = {port}: cannot be listened on at 127.0.0.1" in shown.splitlines()[-1]
    assert "Load weight begin" not in shown


def test_unsupported_sglang(tmp_path: Path) -> None:
    script, log = tmp_path / "start.py", tmp_path / "log"
    script.write_text(PRETEND_OTHER_VERSION.format(model=str(TRAINED)))
    assert Program([str(script)], users_environment(), log).wait(START_SECONDS) != 0
    message = log.read_text().splitlines()[-1]
    assert "UnsupportedSGLangError: dlm-serve cannot extend the installed sglang 0.4.0" in message


def test_random_weights(without_weights: Path, tmp_path: Path) -> None:
    """`--load-format dummy` needs no weights, and every mode runs on them."""
    with Server.launch(without_weights, "--load-format", "dummy", log=tmp_path / "log") as server:
        log = server.log.read_text()
        assert "hook(s)" not in log, "a line of log for each hook"
        said = [line.partition("dlm-serve: ")[2] for line in log.splitlines() if "dlm-serve: " in line]
        assert said == [
            f"{without_weights}, of the family nemotron-labs-diffusion",
            "modes self_speculation, diffusion, autoregressive; without one a request has auto, which begins as "
            "self_speculation; blocks as wide as 4, 8, 16, 32",
            f"page at {server.url}/dlm once the server is ready",
        ]
        for mode in ("autoregressive", "diffusion", "self_speculation"):
            assert len(server.generate([20, 30], 20, mode=mode, ignore_eos=True)["output_ids"]) == 20
        server.assert_nothing_leaked()
