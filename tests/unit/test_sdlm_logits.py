"""The logits of SDLM's windows against those recorded of the reference.

In a process of its own: importing SGLang would take Triton's interpreter from the other tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "sdlm_equals_reference.py"
SUPPORT = Path(__file__).parent.parent / "support"


@pytest.mark.parametrize("variant", ["sdlm-d4-tied", "sdlm-d8-untied"])
def test_equals_reference(variant: str) -> None:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join([str(SUPPORT), env.get("PYTHONPATH", "")])
    command = [sys.executable, str(SCRIPT), variant]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "4 of 4 cases agree" in done.stdout
