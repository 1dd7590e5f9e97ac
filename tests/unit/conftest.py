"""What all unit tests share."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the CPU; read when Triton is first imported

import torch

torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other
