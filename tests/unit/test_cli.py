"""The command line: instant help, a failure is one line on stderr and an exit status, each part loads its own."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from fake_server import FakeServer

from dlm_serve import cli
from dlm_serve.client import MODES
from dlm_serve.decoding import Mode

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "sglang", "transformers", "triton", "matplotlib"}


def packages_loaded_by(code: str) -> set[str]:
    """The top-level packages in a fresh interpreter after `code`."""
    code += "\nimport json, sys; print(json.dumps([name for name in sys.modules if '.' not in name]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_script_is_this_function() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"dlm-serve": "dlm_serve.cli:main"}


def test_help_names_every_command_and_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert {"bench", "chat", "demo", "doctor", "eval", "inflate"} <= set(cli.commands())
    for name in cli.commands():
        module = importlib.import_module(f"dlm_serve.cli.{name}")
        assert module.__doc__ is not None
        assert f"{name} {module.__doc__.splitlines()[0]}" in shown


def test_help_imports_no_command() -> None:
    loaded = packages_loaded_by("from dlm_serve import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass")
    assert "dlm_serve" in loaded
    assert not loaded & {*HEAVY, "rich", "httpx", "pydantic"}


@pytest.mark.parametrize("name", ["demo", "chat", "eval", "bench"])
def test_what_only_asks_a_server_loads_nothing_heavy(name: str) -> None:
    code = f"from dlm_serve import cli\nassert cli.main(['{name}', '--url', 'http://127.0.0.1:9']) == 1"
    loaded = packages_loaded_by(code)
    assert {"rich", "httpx"} <= loaded
    assert not loaded & HEAVY


def test_the_modes_are_those_of_the_server() -> None:
    assert set(MODES) == set(Mode) - {Mode.AUTO}


@pytest.mark.parametrize("name", ["demo", "chat", "eval", "bench"])
def test_no_server_is_running(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The message says where none is and how to start one."""
    assert cli.main([name, "--url", "http://127.0.0.1:9"]) == 1
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert shown.err.startswith(f"dlm-serve {name}: no server answers at http://127.0.0.1:9.")
    for word in ("make serve", "python -m sglang.launch_server --model-path", "--url"):
        assert word in shown.err
    assert "answers" not in shown.out


def test_url_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--url", "localhost"]) == 1
    assert "http://" in capsys.readouterr().err


def test_server_without_the_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(lambda question, options: "yes") as server:
        server.has_plugin = False
        assert cli.main(["demo", "--url", server.url]) == 1
    assert "without dlm-serve" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["flag", "environment"])
@pytest.mark.parametrize("command", ["demo", "eval", "chat"])
def test_api_key(
    how: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It comes from the flag or the environment; without one, the error says so."""
    monkeypatch.setattr("sys.stdin", io.StringIO("why?\n"))
    short = ["--count", "1", "--out", str(tmp_path / "eval.json")] if command == "eval" else []
    with FakeServer(lambda question, options: "yes") as server:
        server.api_key = "secret"
        asked = [command, "--url", server.url, *short]
        assert cli.main(asked) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "--api-key or DLM_SERVE_API_KEY" in error
        if how == "environment":
            monkeypatch.setenv("DLM_SERVE_API_KEY", "secret")
        assert cli.main([*asked, *(["--api-key", "secret"] if how == "flag" else [])]) == 0


@pytest.mark.parametrize("modes", [("diffusion",), ("diffusion", "autoregressive")])
def test_models_without_some_modes(modes: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What there is is asked; what is asked for and is not there is an invalid value."""
    out = tmp_path / "eval.json"
    with FakeServer(lambda question, options: "yes") as server:
        server.modes = modes
        assert cli.main(["demo", "--url", server.url]) == 0
        flags = ["--count", "1", "--thresholds", "0.9", "--algorithm", "threshold", "--out", str(out)]
        assert cli.main(["eval", "--url", server.url, *flags]) == 0
        assert {"mode": "diffusion", "threshold": 0.9, "algorithm": "threshold"} in [
            body["sampling_params"]["custom_params"]["dlm"] for body in server.requests
        ]
        asked = {body["sampling_params"]["custom_params"]["dlm"]["mode"] for body in server.requests}
        capsys.readouterr()
        assert cli.main(["demo", "--url", server.url, "--modes", "self_speculation"]) == 2
    assert asked == set(modes)
    losses = json.loads(out.read_text())["results"][0]["loss_by_position"]
    assert (losses[0] is not None) == ("autoregressive" in modes)
    error = capsys.readouterr().err
    assert error.startswith("dlm-serve demo: --modes = 'self_speculation': this model offers ")


def test_server_that_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    """Its own words are passed on, of a stream and of a whole answer."""
    with FakeServer(lambda question, options: "yes") as server:
        for name in ("demo", "eval"):
            assert cli.main([name, "--url", server.url, "--max-new-tokens", "1001"]) == 1
            error = capsys.readouterr().err
            assert error.startswith(f"dlm-serve {name}: HTTP 400 from {server.url}/generate")
            assert "max_new_tokens = 1001: at most 1000; ask for fewer." in error


def test_wrong_value_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ours, and those of the argument parser."""
    assert cli.main(["inflate", "--like", "9b", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("dlm-serve inflate: ")
    for wrong in (["demo", "--max-new-tokens", "0"], ["eval", "--count", "x"], ["eval", "--modes", "fast"], ["dmeo"]):
        with pytest.raises(SystemExit) as end:
            cli.main(wrong)
        assert end.value.code == 2


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dlm_serve", "inflate", "--like", "9b", "out"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
