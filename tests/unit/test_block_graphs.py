"""Graphs of block steps against the eager step, without a GPU.

In a process of its own: importing SGLang would take Triton's interpreter from the other tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "graphs_equal_eager.py"


def test_graphs_equal_eager() -> None:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, SCRIPT], env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
