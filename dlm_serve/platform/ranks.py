"""Several ranks on plain PyTorch: weights are divided as on a GPU, and cores are divided over the ranks."""

from __future__ import annotations

import itertools
import os
from typing import Any

THREADS_VARIABLE = "OMP_NUM_THREADS"
"""Threads of a forward, where the user has not set them: all cores but one, divided by the ranks.

Threads wait for each other by spinning. Where another process has a core that one of them needs, a step takes seven
times as long (nano, two threads on two cores); with a core to spare nothing is lost beside it.
"""

CORES_VARIABLE = "SGLANG_CPU_OMP_THREADS_BIND"
"""The cores of each rank. Without it SGLang refuses more ranks than the machine has NUMA nodes."""


def set_threads(num_ranks: int) -> None:
    """Set the threads and cores of `num_ranks` processes that are started from here, where the user has not."""
    cores = _cores()
    os.environ.setdefault(THREADS_VARIABLE, str(max(1, (len(cores) - 1) // num_ranks)))
    if num_ranks > 1:
        starts = [rank * len(cores) // num_ranks for rank in range(num_ranks + 1)]
        shares = [cores[start : max(end, start + 1)] for start, end in itertools.pairwise(starts)]
        os.environ.setdefault(CORES_VARIABLE, "|".join(",".join(map(str, share)) for share in shares))


def keep_heads(original: Any, model_config: Any, load_config: Any, tp_size: int) -> Any:
    """Return `model_config` as it is; SGLang adds heads of zeros until ranks divide them, which loading does not.

    Fewer KV heads than ranks are replicated then, as on a GPU.
    """
    return model_config


def _cores() -> list[int]:
    """Return the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
