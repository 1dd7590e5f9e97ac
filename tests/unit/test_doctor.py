"""`dlm-serve doctor`: what it finds where something is wrong, and what it says to do."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from golden import DATA, TRAINED

from dlm_serve import cli, doctor
from dlm_serve.bundled import FOLDER
from dlm_serve.doctor import Finding, Verdict
from dlm_serve.errors import UnsupportedSGLangError
from dlm_serve.sglang import compat

FINE, WARNING, PROBLEM = Verdict


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        used = doctor.check_port("127.0.0.1", port)
    assert (used.verdict, f":{port}" in used.says, "--port" in used.remedy) == (PROBLEM, True, True)
    assert doctor.check_port("127.0.0.1", port).verdict is FINE


@pytest.mark.parametrize(
    ("model_path", "verdict", "says"),
    [
        ("nano", FINE, "nano is nemotron-labs-diffusion: self_speculation, diffusion, autoregressive"),
        (str(DATA / "bd3lm" / "bd3lm-b4"), FINE, "bd3lm: diffusion"),
        (str(DATA), PROBLEM, "no config.json of a family"),
    ],
)
def test_models(model_path: str, verdict: Verdict, says: str) -> None:
    found = doctor.check_model(model_path)
    assert found.verdict is verdict
    assert says in found.says


def test_a_model_without_weights(tmp_path: Path) -> None:
    shutil.copy(TRAINED / "config.json", tmp_path)
    assert doctor.check_model(str(tmp_path)).verdict is PROBLEM


def test_server_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DLM_SERVE_CONFIG", raising=False)
    file = tmp_path / "server.yaml"
    file.write_text("generation: {mode: fast}")
    found = doctor.check_server_file("nano", str(file))
    assert (found.verdict, "mode" in found.says) == (PROBLEM, True)
    assert doctor.check_server_file("nano", None) == Finding("server file", FINE, "none: the defaults")


@pytest.mark.parametrize(("free", "verdict"), [(19e9, WARNING), (21e9, FINE)])
def test_disks(free: float, verdict: Verdict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    assert doctor.check_disk().verdict is verdict


@pytest.mark.parametrize(("plugins", "verdict"), [("", FINE), ("other,dlm_serve", FINE), ("other", PROBLEM)])
def test_the_plugin_may_be_left_out(plugins: str, verdict: Verdict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_PLUGINS", plugins)
    assert doctor.check_plugin().verdict is verdict


@pytest.mark.parametrize(
    ("capability", "verdict", "kernels"),
    [((7, 5), WARNING, "Triton"), ((8, 6), FINE, "Triton"), ((9, 0), FINE, "Hopper")],
)
def test_gpus(capability: tuple[int, int], verdict: Verdict, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    major, minor = capability
    properties = SimpleNamespace(major=major, minor=minor, name="card", total_memory=80e9)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: properties)
    found = doctor.check_gpu()
    assert found.verdict is verdict
    assert kernels in found.says


def test_a_driver_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(doctor, "_driver", lambda: "470.1")
    assert doctor.check_gpu().verdict is PROBLEM


@pytest.mark.parametrize(("wrong", "status"), [(False, 0), (True, 1)])
def test_exit_status(
    wrong: bool, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every finding is shown, in order, with what to do; the model is not loaded where SGLang is not ours."""

    def require(seams: object) -> None:
        if wrong:
            raise UnsupportedSGLangError("sglang 0.1 is too old")

    monkeypatch.setattr(compat, "require", require)
    monkeypatch.setattr(doctor, "check_answer", lambda path: Finding("answer", FINE, "token 7"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert cli.main(["doctor", "--model-path", str(FOLDER), "--port", str(port), "--answer"]) == status
    shown = capsys.readouterr().out
    subjects = ["SGLang", "plugin", "GPU", "model", "server file", "port", "disk", *([] if wrong else ["answer"])]
    places = [shown.index(f" {subject}: ") for subject in subjects]
    assert places == sorted(places)
    assert ("answer:" in shown) == (not wrong)
    assert ("-> pip install sglang==" in shown) == wrong
