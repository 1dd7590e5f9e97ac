"""Triton's kernels compiled for cards that are not there, by the code that launches them.

For scripts in a process of their own: in that of the tests Triton interprets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

SMALLEST_SHARED_MEMORY = 99 * 1024
"""Bytes that a program may have on an RTX 4090, an L4 or an RTX 5090; others have more."""

CAPABILITIES = (80, 89, 90, 100, 120)


class _Card:
    """As much of a driver of Triton's as compiling takes."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return self._capability  # another device each: kernels are kept by it

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled(launch: Callable[[], object], capability: int) -> list[Any]:
    """The kernels that `launch` launches, on tensors of the CPU, compiled for a compute capability and not run.

    They are specialised as they would be on the card: by the values and the alignment of their arguments.
    """
    kernels: list[Any] = []
    run = JITFunction.run

    def compile_only(function: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernels.append(run(function, *args, grid=grid, warmup=True, **options))

    triton.runtime.driver.set_active(_Card(capability))
    with mock.patch.object(JITFunction, "run", compile_only):
        launch()
    return kernels
