"""Whether this process runs on plain PyTorch: only where there is no accelerator, or where asked for."""

from __future__ import annotations

import os

from dlm_serve.errors import ConfigError

PLATFORM_VARIABLE = "DLM_SERVE_PLATFORM"


def activate() -> str | None:
    """Return the platform class to use, None to leave it to SGLang: entry point of `sglang.srt.platforms`."""
    return "dlm_serve.platform.cpu.TorchCpuPlatform" if is_active() else None


def is_active() -> bool:
    """Return whether SGLang runs on our plain-PyTorch platform in this process."""
    asked = os.environ.get(PLATFORM_VARIABLE, "auto")
    if asked not in ("auto", "cpu"):
        raise ConfigError(PLATFORM_VARIABLE, asked, "must be auto or cpu", "correct it or unset it")
    if asked == "cpu":
        return True
    if os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
        return False

    import torch

    return torch.accelerator.current_accelerator(check_available=True) is None
