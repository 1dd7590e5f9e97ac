"""Let vLLM find Triton without a GPU: its kernels run in Triton's interpreter. On `PYTHONPATH`, in every process."""

from __future__ import annotations

import contextlib
import os
from types import SimpleNamespace
from typing import Any

if os.environ.get("TRITON_INTERPRET") == "1":
    with contextlib.suppress(ImportError):
        from triton.backends import backends
        from triton.runtime.interpreter import InterpreterBuilder

        store = InterpreterBuilder.create_masked_store

        def stored(builder: Any, pointers: Any, value: Any, mask: Any, *options: Any) -> Any:
            """Store as Triton's compiler does, which takes masks of any type of integer; its interpreter does not."""
            mask.data = mask.data.astype(bool)
            return store(builder, pointers, value, mask, *options)

        InterpreterBuilder.create_masked_store = stored
        backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)
