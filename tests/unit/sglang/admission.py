"""Run by test_admission.py: SGLang's tokenizer manager as ours, without what it loads; findings as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sglang.srt.managers.tokenizer_manager import TokenizerManager

from dlm_serve.sglang.frontend.admission import DlmTokenizerManager
from dlm_serve.sglang.serving import find_serving


def manager_of(model_path: Path, **preferred: Any) -> Any:
    """The manager of an engine that serves `model_path`."""
    server_args: Any = SimpleNamespace(
        model_path=str(model_path), revision=None, dllm_algorithm_config=None, device="cpu"
    )
    find_serving(server_args)
    manager = object.__new__(DlmTokenizerManager)
    manager.preferred_sampling_params = preferred
    manager.model_path = str(model_path)
    manager.model_config = SimpleNamespace(hf_generation_config=None)
    manager.init_model_config()
    return manager


def main(first: Path, second: Path) -> None:
    TokenizerManager.init_model_config = lambda self: None
    managers = [manager_of(first, temperature=0.3, top_k=7), manager_of(second)]
    generation = managers[0].model_config.hf_generation_config
    found = {
        "families": [manager.serving.checkpoint.family.name for manager in managers],
        "drawing": {
            name: getattr(generation, name) for name in ("temperature", "top_k", "top_p", "repetition_penalty")
        },
    }
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
