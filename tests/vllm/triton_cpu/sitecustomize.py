"""Let vLLM find Triton without a GPU: its kernels run in Triton's interpreter. On `PYTHONPATH`, in every process."""

from __future__ import annotations

import contextlib
import os
from types import SimpleNamespace

if os.environ.get("TRITON_INTERPRET") == "1":
    with contextlib.suppress(ImportError):
        from triton.backends import backends

        backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)
