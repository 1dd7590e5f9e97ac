"""SGLang's model runner without its scheduler, for scripts that run in a process of their own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dlm_serve.plugin import MODEL_PACKAGE


def model_runner_of(model_path: Path, **server_args: Any) -> Any:
    """A runner that has loaded `model_path` and holds its KV pool, as the server's would."""
    # SGLang then leaves out its own models, whose import takes longer than all that these scripts do.
    os.environ.setdefault("SGLANG_EXTERNAL_MODEL_PACKAGE", MODEL_PACKAGE)
    from sglang.srt.plugins import load_plugins

    load_plugins()  # before the names that it changes are looked up
    from sglang.benchmark.one_batch import load_model
    from sglang.srt.entrypoints.engine import _set_envs_and_config
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import PortArgs, ServerArgs

    args = ServerArgs(model_path=str(model_path), **{"log_level": "error", "max_total_tokens": 2048, **server_args})
    args.resolve_once()
    _set_envs_and_config(args)
    publish(args, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
    runner, _ = load_model(args, PortArgs.init_new(args), gpu_id=0, tp_rank=0)
    return runner.torch_runner
