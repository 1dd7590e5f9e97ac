"""Name all that is changed in SGLang; what is used of it as it is stands in `sglang.seams`.

From here hooks are installed (`sglang.install`), hooks and seams are probed (`sglang.compat`), and the tables of
docs/hooks.md are written (`docs/generate.py`). Importing it loads nothing of SGLang's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dlm_serve.seams import Seam

_SRT = "sglang.srt"
_OURS = "dlm_serve.sglang"


class Role(StrEnum):
    """The processes that hooks are for."""

    EVERY = "every"
    LAUNCHER = "main, before it loads anything"
    MAIN = "main"
    SCHEDULER = "scheduler"
    CPU_SCHEDULER = "scheduler on plain PyTorch"


@dataclass(frozen=True)
class Hook(Seam):
    """A change to SGLang, and what it would take to drop it."""

    kind: str = ""
    """before, after, around or replace, as SGLang's HookType."""
    hook: str = ""
    """`module:name` of a function of ours or, to replace a class, of a subclass of it."""
    role: Role = Role.EVERY
    why: str = ""
    until: str = ""


RESOLVE = Hook(
    f"{_SRT}.server_args.ServerArgs.resolve_once",
    kind="before",
    hook="dlm_serve.plugin:before_resolve",
    role=Role.EVERY,
    why="path, architecture and algorithm of a model of ours are needed before SGLang reads its configuration",
    until="a plugin can complete server arguments before they are resolved",
)

PUBLISH = Hook(
    f"{_SRT}.runtime_context.publish",
    ("server_args", "role"),
    kind="before",
    hook="dlm_serve.plugin:before_publish",
    role=Role.EVERY,
    why="each process says here what it serves and as what, before it looks up a class; it installs its hooks then",
    until="SGLang loads plugins with the server's arguments",
)

USAGE = Hook(
    f"{_SRT}.server_args.ServerArgs.add_cli_args",
    ("parser",),
    kind="before",
    hook="dlm_serve.plugin:before_cli_args",
    role=Role.EVERY,
    why="`--help` would not say which models and options there are",
    until="a plugin can add to the help",
)

ENTRY_HOOKS = (RESOLVE, PUBLISH, USAGE)
"""Registered in every process that loads the plugin; they change nothing of how another model is served."""

HOOKS = (
    Hook(
        f"{_SRT}.entrypoints.http_server.launch_server",
        ("server_args",),
        kind="before",
        hook=f"{_OURS}.listening:require_free_port",
        role=Role.LAUNCHER,
        why="a port in use is found only when the model has been loaded",
        until="SGLang looks before it loads",
    ),
    Hook(
        f"{_SRT}.managers.tokenizer_manager.TokenizerManager",
        kind="replace",
        hook=f"{_OURS}.frontend.admission:DlmTokenizerManager",
        role=Role.MAIN,
        why="requests need a check and a plan, their samples seeds, their answers the newest statistics; "
        "n = 0 and patterns that do not compile end in HTTP 500 or an empty stream, and token ids outside the "
        "vocabulary kill the scheduler",
        until="a plugin can validate requests; SGLang refuses n < 1 and numbers the samples of a request",
    ),
    Hook(
        f"{_SRT}.entrypoints.api_contract.generate_contract_error",
        ("body",),
        kind="after",
        hook=f"{_OURS}.frontend.admission:contract_error",
        role=Role.MAIN,
        why="a streaming /generate answers 200 before its request is checked",
        until="SGLang checks requests before it starts to stream",
    ),
    Hook(
        f"{_SRT}.entrypoints.openai.serving_chat.OpenAIServingChat._convert_to_internal_request",
        ("request", "raw_request"),
        kind="around",
        hook=f"{_OURS}.frontend.admission:converted_chat",
        role=Role.MAIN,
        why="a chat with fields of types that nobody checks ends in HTTP 500; where the end of thinking is a special "
        "token it is taken out of the text before the reasoning parser looks for it",
        until="SGLang answers what it cannot convert with HTTP 400, and leaves a reasoning parser its tokens",
    ),
    Hook(
        f"{_SRT}.entrypoints.openai.serving_completions.OpenAIServingCompletion._build_sampling_params",
        ("request",),
        kind="after",
        hook=f"{_OURS}.frontend.admission:as_the_model_says",
        role=Role.MAIN,
        why="/v1/completions draws at temperature 1.0 where nothing is said, whatever the checkpoint says",
        until="SGLang gives completions the checkpoint's defaults, as it does chats",
    ),
    Hook(
        f"{_SRT}.entrypoints.ollama.serving.OllamaServing",
        kind="replace",
        hook=f"{_OURS}.frontend.ollama:DlmOllamaServing",
        role=Role.MAIN,
        why="streams leave out the text of their last step; a seed is handed on by a name that nothing takes",
        until="SGLang's Ollama routes stream whole answers and know the seed",
    ),
    Hook(
        f"{_SRT}.parser.template_detection.detect_reasoning_pattern",
        ("template",),
        kind="after",
        hook=f"{_OURS}.frontend.reasoning:thinking_switch",
        role=Role.MAIN,
        why="the switch of a template that thinks only where it is told to is not found as the release writes it: with "
        "a reasoning parser, all answers would be reasoning",
        until="SGLang reads `enable_thinking if enable_thinking is defined else false`, as it does `else true`",
    ),
    Hook(
        f"{_SRT}.function_call.function_call_parser.FunctionCallParser.parse_stream_chunk",
        ("chunk_text",),
        kind="around",
        hook=f"{_OURS}.frontend.tools:whole_piece",
        role=Role.MAIN,
        why="a step may emit a tool's whole call or several, of which SGLang finds one part per piece of a stream: "
        "without it arguments and later calls are lost at the end, and so is text that comes with a call's first tag",
        until="SGLang's detectors read a piece to its end",
    ),
    Hook(
        f"{_SRT}.managers.scheduler.Scheduler",
        kind="replace",
        hook=f"{_OURS}.engine.scheduler:DlmScheduler",
        role=Role.SCHEDULER,
        why="a request whose step in flight emits nothing would be dropped as finished by length; one that fills the "
        "pool but for the reserve of its steps would be ended by an error; a prompt is given the log-probabilities of "
        "another where a request before it was retracted or aborted while their EXTEND call ran, and an answer whose "
        "first token ends its grammar goes on; outputs carry meta_info.dlm; ranks learn of the router's decisions with "
        "the requests",
        until="SGLang asks the algorithm for the least a step emits, counts the reserve when it says how long requests "
        "may be and the log-probabilities of requests that it skips, moves grammars before it looks for the end of a "
        "request, and a plugin can name the streamer class and broadcast messages of its own",
    ),
    Hook(
        f"{_SRT}.managers.schedule_batch.Req",
        kind="replace",
        hook=f"{_OURS}.engine.req:DlmReq",
        role=Role.SCHEDULER,
        why="an EXTEND call may give no token; after a step that emits nothing, output_ids[-0:] rescans the whole "
        "output; BD3-LM has a stop rule of its own; the KV of an answer may be missing still, or not be that of the "
        "same tokens in a prompt; requests are counted as their results are known",
        until="SGLang takes a prefill's tokens as it takes a speculative step's, slices by length, asks the "
        "algorithm which KV may be shared and which step verified drafts, and a plugin hears of results",
    ),
    Hook(
        f"{_SRT}.mem_cache.allocation_sizing.get_req_to_token_extra_context_len",
        kind="after",
        hook=f"{_OURS}.engine.scheduler:room_for_reserve",
        role=Role.SCHEDULER,
        why="at page size 1 the reserve of a full context runs into the next request's row",
        until="SGLang sizes rows by the reserve at every page size",
    ),
    Hook(
        f"{_SRT}.mem_cache.allocation.assign_req_to_token_pool_func",
        ("req_pool_indices", "req_to_token", "start_offset", "end_offset", "out_cache_loc", "batch_size"),
        kind="around",
        hook="dlm_serve.platform.memory:assign_req_to_token_pool",
        role=Role.CPU_SCHEDULER,
        why="it is a Triton kernel, or one of a CPU build of sgl_kernel that no registry has",
        until="SGLang asks PlatformCapabilities.supports_triton here too",
    ),
    Hook(
        f"{_SRT}.configs.update_config.adjust_config_with_unaligned_cpu_tp",
        ("model_config", "load_config", "tp_size"),
        kind="around",
        hook="dlm_serve.platform.ranks:keep_heads",
        role=Role.CPU_SCHEDULER,
        why="where ranks do not divide the KV heads it adds heads of zeros, which only SGLang's CPU engine can load",
        until="SGLang pads for its CPU engine alone",
    ),
)
"""Installed in a process that serves one of our models, those of its role."""


def hooks_of(role: Role) -> tuple[Hook, ...]:
    """Return the hooks that are installed for `role`."""
    return tuple(hook for hook in (*ENTRY_HOOKS, *HOOKS) if hook.role is role)
