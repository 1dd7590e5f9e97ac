"""One engine of vLLM in this process for each checkpoint, in float32 and without a GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# All of this is read when vLLM or Triton are first imported.
HERE = Path(__file__).parent
TRITON_CPU = HERE / "triton_cpu"
ENVIRONMENT = {
    "TRITON_INTERPRET": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_PLUGINS": "dlm_serve",
    "PYTHONPATH": os.pathsep.join(
        str(folder) for folder in (TRITON_CPU, *filter(None, [os.environ.get("PYTHONPATH")]))
    ),
}
os.environ.update(ENVIRONMENT)
sys.path[:0] = [str(HERE.parent / "support"), str(TRITON_CPU)]
import pytest  # noqa: E402
import sitecustomize  # noqa: E402, F401

FLAGS: dict[str, Any] = {
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 2048,
    "dtype": "float32",
    "distributed_executor_backend": "uni",
    "enable_prefix_caching": True,
}

Request = tuple[list[int], Mapping[str, Any]]
"""The ids of a prompt, and the arguments of SamplingParams."""


def schedule_ahead() -> None:
    """Let engines schedule steps while the one before them runs, as on a GPU, unless a test's flags say otherwise.

    vLLM for CPUs does not, and so `vllm serve` here.
    """
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config

    def checked(config: Any) -> None:
        is_ahead = config.scheduler_config.async_scheduling
        check(config)
        config.scheduler_config.async_scheduling = is_ahead

    CpuPlatform.check_and_update_config = staticmethod(checked)


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[..., Any]]:
    """Start an engine with vLLM's flags; one at a time is held."""
    from vllm import LLM

    schedule_ahead()
    held: dict[str, Any] = {}

    def started(model: Path, **flags: Any) -> Any:
        key = repr((model, flags))
        if key not in held:
            held.clear()
            held[key] = LLM(str(model), **{**FLAGS, **flags})
        return held[key]

    yield started
    held.clear()


@pytest.fixture(scope="session")
def ask() -> Callable[[Any, Sequence[Request]], list[Any]]:
    """Ask an engine all of some requests at once, and return what each was answered."""
    from vllm import SamplingParams

    def asked(engine: Any, requests: Sequence[Request]) -> list[Any]:
        prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
        params = [SamplingParams(**{"temperature": 0.0, **params}) for _, params in requests]
        return [output.outputs[0] for output in engine.generate(prompts, params, use_tqdm=False)]

    return asked
