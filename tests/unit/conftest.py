"""What all unit tests share."""

from __future__ import annotations

import torch

torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other
