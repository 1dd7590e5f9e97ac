"""An SGLang plugin for tests: a decode step that waits for the device ends the server.

PyTorch's sync debug mode raises where an operation would make the host wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

logger = logging.getLogger(__name__)
FIRST_GUARDED = "first decode step guarded against synchronisation"
_guarded = 0


def guard(original: Callable[..., Any], worker: Any, batch: Any) -> Any:
    """Around `DlmWorker._decode`."""
    global _guarded
    if not _guarded:
        logger.warning(FIRST_GUARDED)
    _guarded += 1
    torch.cuda.set_sync_debug_mode("error")
    try:
        return original(worker, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def register() -> None:
    """Entry point of `sglang.srt.plugins`."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register("dlm_serve.sglang.engine.worker.DlmWorker._decode", guard, HookType.AROUND)
