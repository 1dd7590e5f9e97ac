"""What all tests share."""

from __future__ import annotations

import os

import pytest

# Kernels run in Triton's interpreter unless a GPU is asked for. Triton reads this when it is first imported,
# and any test file may be the first to import it: so it stands here, above all of them.
ON_GPU = os.environ.get("DLM_TEST_DEVICE") == "cuda"
if not ON_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")

import torch  # noqa: E402

torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels are checked."""
    return torch.device("cuda" if ON_GPU else "cpu")
