"""What can be known of the Hopper kernel without a GPU; test_block_attention_kernels.py checks it on one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("hopper_compiles.py")


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_tensor_cores_work_beside_the_softmax(dtype: str, head_dim: int) -> None:
    """Where it cannot prove them apart, the assembler makes matrix products wait for one another and says so."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), dtype, str(head_dim)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    assert "Compiling entry function 'split_kernel' for 'sm_90a'" in said.stdout
    assert "serialized" not in said.stdout
    assert "0 bytes spill stores, 0 bytes spill loads" in said.stdout
