"""SGLang on plain PyTorch, with no kernel of its own: every operator in its native form."""

from __future__ import annotations

import torch
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform


class TorchCpuPlatform(CpuDeviceMixin, SRTPlatform):  # type: ignore[misc]  # the bases are untyped
    """The platform of a machine without an accelerator."""

    _enum = PlatformEnum.OOT

    def get_default_attention_backend(self) -> str:
        """Name SGLang's attention on PyTorch's scaled_dot_product_attention."""
        return "torch_native"

    def get_dispatch_key_name(self) -> str:
        """Let SGLang's layers run their `forward_native`."""
        return "native"

    def get_compile_backend(self, mode: str | None = None) -> str:
        """Have what SGLang compiles run as it is: for the few small functions that models use, compiling takes seconds
        and a C++ compiler."""
        return "eager"

    def get_torch_profiler_activity_str(self) -> str:
        """Name what `/start_profile` records."""
        return "CPU"

    def get_torch_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        """Return PyTorch's activity of that name."""
        return torch.profiler.ProfilerActivity.CPU

    def get_kv_pool_cls(self, *, kind: str) -> type | None:
        """Return our pool for ordinary attention, SGLang's for the rest."""
        if kind != "mha":
            return None
        # Importing it needs the platform, which SGLang is still resolving while it imports this module.
        from dlm_serve.platform.memory import TorchKVPool

        return TorchKVPool
