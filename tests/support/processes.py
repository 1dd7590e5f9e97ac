"""Python in processes of their own: what SGLang imports would take Triton's interpreter from the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SECONDS = 600
_SUPPORT = Path(__file__).parent


def users_environment() -> dict[str, str]:
    """The environment as the user has it, without what the tests set for themselves."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def output_of(script: Path, *arguments: str) -> str:
    """What `script` prints; it must succeed."""
    environment = users_environment()
    environment["PYTHONPATH"] = os.pathsep.join([str(_SUPPORT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
