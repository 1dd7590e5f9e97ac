"""The commands of the README, run as they stand there, and its offline example."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from preloaded import Program
from processes import users_environment
from serving import ANSWER_SECONDS, ROOT, START_SECONDS, Server

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [command for block in BLOCKS for command in re.split(r"\n(?! |\\)", block.strip()) if command]
CURLS = [command for command in COMMANDS if command.startswith("curl ")]


def run(command: str, seconds: int) -> str:
    """What a command prints, which must succeed."""
    done = subprocess.run(
        shlex.split(command.replace("\\\n", " ")),
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", CURLS)
def test_curl(nano: Server, command: str) -> None:
    """`nano` is the server that `make serve` starts."""
    answer: dict[str, Any] = json.loads(run(f"{command} -s --fail-with-body", ANSWER_SECONDS))
    choices = answer.get("choices", [answer])
    assert all("message" in choice or choice.get("text") is not None for choice in choices)


def test_readme_names_the_commands_that_are_tested() -> None:
    assert "make serve" in COMMANDS
    assert "make test" in COMMANDS
    assert {re.search(r"/v1/[a-z/]+|/generate", curl)[0] for curl in CURLS} == {  # type: ignore[index]
        "/v1/chat/completions",
        "/v1/completions",
        "/generate",
    }


def test_offline_example(tmp_path: Path) -> None:
    python, *arguments = shlex.split(next(command for command in COMMANDS if "offline.py" in command))
    assert python.endswith("python")
    output, errors = tmp_path / "output", tmp_path / "errors"
    assert Program(arguments, users_environment(), output, errors).wait(START_SECONDS) == 0, errors.read_text()
    assert "'mode': 'diffusion'" in output.read_text().splitlines()[-1]
