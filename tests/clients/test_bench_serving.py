"""SGLang's own benchmark counts every answer, by each of its backends for such a server."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

NANO = Path(__file__).parent.parent.parent / "dlm_serve" / "assets" / "nano"


@pytest.mark.parametrize(
    ("backend", "name", "mode"),
    [
        ("sglang", "nano", "self_speculation"),
        ("sglang-oai-chat", "nano", "diffusion"),
        ("sglang-oai", "nano:diffusion", None),
    ],
)
def test_bench_serving(url: str, server_python: str, tmp_path: Path, backend: str, name: str, mode: str | None) -> None:
    extra = json.dumps({"custom_params": {"dlm": {"mode": mode}}} if mode else {})
    figures = tmp_path / "figures.jsonl"
    options = {
        "--backend": backend,
        "--base-url": url,
        "--model": str(NANO),
        "--served-model-name": name,
        "--dataset-name": "random-ids",
        "--num-prompts": "3",
        "--random-input-len": "16",
        "--random-output-len": "16",
        "--extra-request-body": extra,
        "--output-file": str(figures),
    }
    command = [server_python, "-m", "sglang.bench_serving", *(word for pair in options.items() for word in pair)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(figures.read_text().splitlines()[-1])["completed"] == 3
