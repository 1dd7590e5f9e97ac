"""The plugin that SGLang loads in each of its processes, and everything it changes there.

SGLang is extended through its own seams where it has them: a registered speculative algorithm, platform
and model package. The rest are the hooks listed here. They are installed only in a
process that serves one of our models, and only those that its role needs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dlm_serve import compat
from dlm_serve.errors import UnsupportedSGLangError


class Role(StrEnum):
    """The processes that hooks are for."""

    MAIN = "main"
    SCHEDULER = "scheduler"
    CPU_SCHEDULER = "scheduler on plain PyTorch"


@dataclass(frozen=True)
class Hook:
    """One change to SGLang, and what it would take to drop it."""

    target: str
    kind: str
    """before, after or around, as SGLang's HookType."""
    hook: str
    """`module:function` of ours."""
    role: Role
    why: str
    since: str
    until: str


_SRT = "sglang.srt"
_ENGINE = "dlm_serve.engine"

HOOKS = (
    Hook(
        f"{_SRT}.managers.io_struct.GenerateReqInput.normalize_batch_and_arguments",
        "before",
        f"{_ENGINE}.admission:refuse_no_samples",
        Role.MAIN,
        "n = 0 hangs the request",
        since="0.5.23",
        until="SGLang refuses n < 1",
    ),
    Hook(
        f"{_SRT}.entrypoints.api_contract.generate_contract_error",
        "after",
        f"{_ENGINE}.admission:contract_error",
        Role.MAIN,
        "a streaming /generate answers 200 before its request is checked",
        since="0.5.23",
        until="SGLang checks requests before it starts to stream",
    ),
    Hook(
        f"{_SRT}.managers.tokenizer_manager.TokenizerManager._create_tokenized_object",
        "after",
        f"{_ENGINE}.admission:admit",
        Role.MAIN,
        "options need a check and a plan; input ids outside the vocabulary kill the scheduler",
        since="0.5.23",
        until="a plugin can validate requests",
    ),
    Hook(
        f"{_SRT}.managers.tokenizer_manager.TokenizerManager._send_one_request",
        "before",
        f"{_ENGINE}.admission:give_samples_seeds",
        Role.MAIN,
        "the n samples of a request share its seed and would all be the same",
        since="0.5.23",
        until="SGLang numbers the samples of a request",
    ),
    Hook(
        f"{_SRT}.managers.tokenizer_manager.TokenizerManager.update_request_meta_info",
        "after",
        f"{_ENGINE}.admission:newest_statistics",
        Role.MAIN,
        "per-request values are collected into a list, one per chunk",
        since="0.5.23",
        until="SGLang has request-level customized info in Python",
    ),
    Hook(
        f"{_SRT}.configs.model_config.ModelConfig.get_default_sampling_params",
        "after",
        f"{_ENGINE}.admission:greedy_by_default",
        Role.MAIN,
        "the OpenAI routes default to temperature 1.0, the model cards decode greedily",
        since="0.5.23",
        until="the checkpoints' generation_config.json says temperature 0",
    ),
    Hook(
        f"{_SRT}.entrypoints.openai.serving_completions.OpenAIServingCompletion._build_sampling_params",
        "after",
        f"{_ENGINE}.admission:as_the_model_says",
        Role.MAIN,
        "/v1/completions draws at temperature 1.0 where nothing is said, whatever the checkpoint says",
        since="0.5.23",
        until="SGLang gives completions the checkpoint's defaults, as it does chats",
    ),
    Hook(
        f"{_SRT}.managers.scheduler.Scheduler._reqs_finishing_inflight",
        "after",
        f"{_ENGINE}.results:only_certain_to_emit",
        Role.SCHEDULER,
        "a request whose step in flight emits nothing would be dropped as finished by length",
        since="0.5.23",
        until="SGLang asks the algorithm for the least a step emits",
    ),
    Hook(
        f"{_SRT}.managers.scheduler.Scheduler.get_output_streamer_class",
        "after",
        f"{_ENGINE}.results:report_statistics",
        Role.SCHEDULER,
        "meta_info.dlm; the seam is SGLang's own, for subclasses of Scheduler",
        since="0.5.23",
        until="a plugin can name the streamer class",
    ),
    Hook(
        f"{_SRT}.managers.schedule_batch.Req.update_finish_state",
        "around",
        f"{_ENGINE}.results:check_new_tokens",
        Role.SCHEDULER,
        "after a step that emits nothing, output_ids[-0:] rescans the whole output; BD3-LM has a stop rule of its own",
        since="0.5.23",
        until="SGLang slices by length",
    ),
    Hook(
        f"{_SRT}.managers.schedule_batch.Req.owned_kv_len",
        "after",
        f"{_ENGINE}.results:own_what_is_shareable",
        Role.SCHEDULER,
        "the KV of an answer may be missing still, or not be that of the same tokens in a prompt",
        since="0.5.23",
        until="SGLang asks the algorithm which KV may be shared",
    ),
    Hook(
        f"{_SRT}.managers.scheduler_components.output_streamer._GenerationStreamAccumulator.accept",
        "around",
        f"{_ENGINE}.results:skip_output_without_tokens",
        Role.SCHEDULER,
        "after a step that emits nothing, an empty chunk is streamed",
        since="0.5.23",
        until="SGLang skips requests with nothing unsent",
    ),
    Hook(
        f"{_SRT}.mem_cache.allocation_sizing.get_req_to_token_extra_context_len",
        "after",
        f"{_ENGINE}.results:room_for_reserve",
        Role.SCHEDULER,
        "at page size 1 the reserve of a full context runs into the next request's row",
        since="0.5.23",
        until="SGLang sizes rows by the reserve at every page size",
    ),
    Hook(
        f"{_SRT}.managers.tp_worker.TpModelWorker.get_worker_info",
        "after",
        f"{_ENGINE}.results:longest_that_fits",
        Role.SCHEDULER,
        "a request that fills the pool but for the reserve of its steps would be ended by an error, its answer lost",
        since="0.5.23",
        until="SGLang counts the reserve when it says how long requests may be",
    ),
    Hook(
        f"{_SRT}.mem_cache.allocation.assign_req_to_token_pool_func",
        "around",
        "dlm_serve.platform.memory:assign_req_to_token_pool",
        Role.CPU_SCHEDULER,
        "it is a Triton kernel, or one of a CPU build of sgl_kernel that no registry has",
        since="0.5.23",
        until="SGLang asks PlatformCapabilities.supports_triton here too",
    ),
)
"""The ledger. One more hook, on `ServerArgs.resolve_once`, is how `register` learns what is served."""


def register() -> None:
    """Entry point of `sglang.srt.plugins`, called once in every SGLang process.

    SGLang swallows what this raises, so an unsupported SGLang is reported where it does not: when a
    server for one of our models resolves its arguments.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    try:
        compat.require(compat.CORE_SEAMS)
    except UnsupportedSGLangError as error:
        unsupported = error

        def refuse(server_args: Any) -> None:
            from dlm_serve.models.checkpoint import Checkpoint

            if Checkpoint.find(server_args.model_path, server_args.revision) is not None:
                raise unsupported

        HookRegistry.register(f"{_SRT}.server_args.ServerArgs.resolve_once", refuse, HookType.BEFORE)
        return
    _register_algorithm()
    HookRegistry.register(f"{_SRT}.server_args.ServerArgs.resolve_once", _before_resolve, HookType.BEFORE)


def _register_algorithm() -> None:
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    from dlm_serve.engine.algorithm import NAME, DlmAlgorithm
    from dlm_serve.models.configuration import register_configs

    register_configs()
    os.environ.setdefault("SGLANG_EXTERNAL_MODEL_PACKAGE", "dlm_serve.models")
    SpeculativeAlgorithm.register(NAME, supports_overlap=True, spec_class=DlmAlgorithm)(_worker_class)


def _before_resolve(server_args: Any) -> None:
    """Before `ServerArgs.resolve_once`, in the main process: set what our models need."""
    if getattr(server_args, "_resolution_finished", False):
        return
    from dlm_serve.engine.defaults import prepare_server_args

    if prepare_server_args(server_args):
        compat.require(compat.SEAMS)
        _install(Role.MAIN)


def _worker_class(server_args: Any) -> type:
    """SGLang's scheduler asks for the worker class before it builds its pools and backends."""
    from dlm_serve.platform import is_active

    _install(Role.SCHEDULER)
    if is_active():
        _install(Role.CPU_SCHEDULER)
    from dlm_serve.sglang.worker import DlmWorker

    return DlmWorker


def _install(role: Role) -> None:
    import pkgutil

    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for hook in HOOKS:
        if hook.role is role:
            function: Callable[..., Any] = pkgutil.resolve_name(hook.hook)
            HookRegistry.register(hook.target, function, HookType(hook.kind))
    HookRegistry.apply_hooks()
