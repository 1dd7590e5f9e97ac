"""Python in processes of their own: what SGLang imports would take Triton's interpreter from the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from preloaded import Program

SECONDS = 600
TESTS_OWN = ("TRITON_INTERPRET", "PYTHONDONTWRITEBYTECODE")
"""Without bytecode each server would compile what it imports."""

_SUPPORT = Path(__file__).parent


def users_environment() -> dict[str, str]:
    """The environment as the user has it, without what the tests set for themselves, and offline."""
    environment = {name: value for name, value in os.environ.items() if name not in TESTS_OWN}
    return {**environment, "HF_HUB_OFFLINE": "1"}


def output_of(script: Path, *arguments: str) -> str:
    """What `script` prints; it must succeed."""
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder) / "output", Path(folder) / "errors"
        code = Program([str(script), *arguments], _environment(), output, errors).wait(SECONDS)
        assert code == 0, errors.read_text()[-3000:]
        return output.read_text()


def output_of_fresh(script: Path) -> str:
    """The same of an interpreter that has imported nothing, as users' servers begin."""
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _environment() -> dict[str, str]:
    environment = users_environment()
    return {**environment, "PYTHONPATH": os.pathsep.join([str(_SUPPORT), environment.get("PYTHONPATH", "")])}
