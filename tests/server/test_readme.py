"""Run the commands of the README and of docs/api.md as they are written, on the server that `make serve` starts."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from preloaded import Program
from processes import users_environment
from serving import ANSWER_SECONDS, ROOT, START_SECONDS, Server

from dlm_serve.training.tasks import TASKS

URL = "http://127.0.0.1:30000"
README, API = ((ROOT / name).read_text() for name in ("README.md", "docs/api.md"))


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page."""
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)
    return found


COMMANDS = [
    command for block in blocks(README + API, "bash") for command in re.split(r"\n(?! |\\)", block.strip()) if command
]
CURLS = [command for command in COMMANDS if command.startswith("curl ")]


def run(command: list[str], seconds: int) -> str:
    """Return what a command prints. Fails unless it succeeds."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def words(command: str) -> list[str]:
    """Return the words of a shell command that may go on over several lines."""
    return shlex.split(command.replace("\\\n", " "))


@pytest.mark.parametrize("command", CURLS)
def test_curl(nano: Server, command: str) -> None:
    output = run([*words(command.replace(URL, nano.url)), "-s", "--fail-with-body"], ANSWER_SECONDS)
    answer: dict[str, Any] = json.loads(output)
    choices = answer.get("choices", [answer])
    assert all("message" in choice or choice.get("text") is not None for choice in choices)
    if "return_meta_info" in command:
        assert choices[0]["meta_info"]["dlm"]["mode"] == "self_speculation"


def test_openai_client(nano: Server) -> None:
    [program] = blocks(README, "python")
    assert URL in program
    assert "1512" in run([sys.executable, "-c", program.replace(URL, nano.url)], ANSWER_SECONDS)


def test_pages_name_the_commands_that_are_tested() -> None:
    assert "make serve" in COMMANDS
    assert {re.search(r"/v1/[a-z/]+|/generate", curl)[0] for curl in CURLS} == {  # type: ignore[index]
        "/v1/chat/completions",
        "/v1/completions",
        "/generate",
    }


def test_the_error_in_the_documentation(nano: Server) -> None:
    [block] = blocks(API, "text")
    response = nano.post(
        "/generate", {"text": "Hello", "sampling_params": {"custom_params": {"dlm": {"block_length": 48}}}}
    )
    assert response.status_code == 400
    assert block.strip() in response.text


def test_offline_example(tmp_path: Path) -> None:
    python, *arguments = shlex.split(next(command for command in COMMANDS if "offline.py" in command))
    assert python.endswith("python")
    output, errors = tmp_path / "output", tmp_path / "errors"
    assert Program(arguments, users_environment(), output, errors).wait(START_SECONDS) == 0, errors.read_text()
    assert "'mode': 'diffusion'" in output.read_text().splitlines()[-1]


def test_json_by_a_schema_at_the_speed_of_drafts(nano: Server) -> None:
    """The task that nano was trained for: the autoregressive answer in a third of the forward passes, or less."""
    fields = ("name", "age", "city", "job")
    schema = {"type": "object", "properties": {field: {} for field in fields}, "required": list(fields)}
    asked = {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}}
    for example in TASKS["json"].examples("heldout", 3, seed=5):
        answers, forwards = [], []
        for mode in ("autoregressive", "self_speculation"):
            chat = {"model": "nano", "messages": [{"role": "user", "content": example.prompt}], "max_tokens": 96}
            options = {"custom_params": {"dlm": {"mode": mode}}, "return_meta_info": True}
            [choice] = nano.post("/v1/chat/completions", {**chat, **asked, **options}).json()["choices"]
            answers.append(choice["message"]["content"])
            forwards.append(choice["meta_info"]["dlm"]["nfe"])
        assert answers[0] == answers[1]
        assert json.loads(answers[0]) == json.loads(example.answer)
        assert 3 * forwards[1] <= forwards[0]
