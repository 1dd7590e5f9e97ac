"""BD3-LM's model, sampler and rules against all that was recorded of the reference.

In a process of its own: importing SGLang would take Triton's interpreter from the other tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "bd3lm_equals_reference.py"
SUPPORT = Path(__file__).parent.parent / "support"


@pytest.mark.parametrize(("variant", "num_cases"), [("bd3lm-b4", 93), ("bd3lm-b8", 88)])
def test_equals_reference(variant: str, num_cases: int) -> None:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join([str(SUPPORT), env.get("PYTHONPATH", "")])
    command = [sys.executable, str(SCRIPT), variant]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{num_cases} of {num_cases} cases agree" in done.stdout
