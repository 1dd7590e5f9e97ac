"""What all tests share."""

from __future__ import annotations

import os

import pytest

# Kernels run in Triton's interpreter unless a GPU is asked for. Triton reads this when it is first imported,
# and any test file may be the first to import it: so it stands here, above all of them.
ON_GPU = os.environ.get("DLM_TEST_DEVICE") == "cuda"
if not ON_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")

# On few cores, with tiny tensors, threads would only wait for each other: here and in the servers that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels are checked."""
    return torch.device("cuda" if ON_GPU else "cpu")
