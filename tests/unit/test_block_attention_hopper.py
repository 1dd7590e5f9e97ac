"""What can be known of the Hopper kernel without a GPU; test_block_attention_kernels.py checks it on one."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import output_of

SCRIPT = Path(__file__).with_name("hopper_compiles.py")


@pytest.mark.parametrize(
    ("dtype", "head_dim", "width"),
    [("bf16", 64, 32), ("bf16", 128, 32), ("bf16", 128, 96), ("fp16", 64, 192)],
)
def test_tensor_cores_work_beside_the_softmax(dtype: str, head_dim: int, width: int) -> None:
    """Where it cannot prove them apart, the assembler makes matrix products wait for one another and says so."""
    said = output_of(SCRIPT, dtype, str(head_dim), str(width))
    assert "Compiling entry function 'split_kernel' for 'sm_90a'" in said
    assert "serialized" not in said
    assert "0 bytes spill stores, 0 bytes spill loads" in said
