"""Set SGLang's arguments when a server starts, so that `--model-path` alone is enough."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dlm_serve import bundled
from dlm_serve.errors import ConfigError
from dlm_serve.models.checkpoint import SAMPLING_DEFAULTS
from dlm_serve.platform import is_active, ranks
from dlm_serve.scheduling.graph_shapes import BATCH_SIZES
from dlm_serve.sglang import algorithm
from dlm_serve.sglang.protocols import ServerArgsLike
from dlm_serve.sglang.serving import Serving, find_serving

CPU_MAX_TOTAL_TOKENS = 1 << 16
"""KV slots on a machine without an accelerator, where SGLang would otherwise take most of its memory."""

CPU_MAX_RUNNING_REQUESTS = 64
"""Requests that decode together there."""

UNCHUNKED_MEM_FRACTION = 0.8
"""The part of the memory that weights and KV may take where prompts are not cut into chunks.

SGLang would set 1.5 MB aside for each token of the longest prefill: 25 GB, which smaller GPUs have not.
"""

PREFILL_DECODE_INTERVAL, PREFILL_DECODE_INTERVAL_MIN_BS = 2, 4
"""Decode steps behind a prefill before the next one, if so many requests decode: prompts come to be encoded together,
and those that decode wait for one prefill at a time. In SGLang each arrival interrupts them at once by default.
"""

_ALWAYS_THINK = ("deepseek-r1", "gigachat35", "qwen3-thinking", "minimax", "step3", "step3p5")
"""Reasoning parsers that look for the end of thinking in every answer."""

# field, the value that is fine, why others are not
_UNSUPPORTED = (
    ("speculative_algorithm", algorithm.NAME, "dlm-serve brings its own decoding"),
    ("dllm_algorithm", None, "the mode is set by generation.mode in the server file, or by each request's `mode`"),
    ("sampling_backend", None, "dlm-serve brings its own sampler"),
    ("speculative_num_draft_tokens", None, "block widths are set by routing.widths in the server file"),
    ("speculative_num_steps", None, "denoising steps are set by each request's `steps`"),
    ("speculative_eagle_topk", None, "drafts are chains, not trees"),
    ("speculative_draft_model_path", None, "the model drafts for itself"),
    ("kv_cache_dtype", "auto", "block attention reads KV of the model's precision alone"),
    ("scheduler_recv_interval", 1, "the router's decisions come with what the scheduler receives in each iteration"),
    ("pp_size", 1, "pipeline parallelism is not supported"),
    ("enable_dp_attention", False, "data-parallel attention is not supported"),
    ("disaggregation_mode", "null", "prefill-decode disaggregation is not supported"),
    ("tokenizer_worker_num", 1, "several tokenizer workers are not supported"),
    ("enable_hierarchical_cache", False, "the hierarchical cache is not supported"),
    ("enable_lora", None, "adapters per request are not supported"),
    ("grpc_mode", False, "gRPC is not supported: requests are checked in the HTTP server"),
    ("smg_grpc_mode", False, "gRPC is not supported: requests are checked in the HTTP server"),
    ("enable_strict_thinking", False, "strict thinking budgets are not supported"),
    ("allow_auto_truncate", False, "prompts would lose their end; without max_tokens an answer is as long as fits"),
    ("enable_prefill_cp", False, "context-parallel prefill is not supported"),
    ("enable_two_batch_overlap", False, "two-batch overlap is not supported"),
)


def prepare_server_args(server_args: ServerArgsLike) -> bool:
    """Set on unresolved `server_args` what our models need; return whether the model is one of ours.

    Raises ConfigError or CheckpointError.
    """
    if is_active() and server_args.device is None:
        server_args.device = "cpu"
    if (folder := bundled.expand(server_args.model_path)) != server_args.model_path:
        server_args.served_model_name = server_args.served_model_name or bundled.NAME
        server_args.model_path = folder
    serving = find_serving(server_args)
    if serving is None:
        return False
    _refuse_unsupported(server_args)
    serving.checkpoint.check_ranks(server_args.tp_size)
    _refuse_quantization(server_args, serving)
    if _has_weights(server_args, serving):
        serving.checkpoint.check_weights()
    serving.checkpoint.draft_adapter(serving.config.lora.draft_adapter)
    if server_args.tokenizer_path is None and not server_args.skip_tokenizer_init:
        tokenizer = serving.checkpoint.tokenizer()
        server_args.tokenizer_path = None if tokenizer is None else str(tokenizer)
    server_args.speculative_algorithm = algorithm.NAME
    _set_prefill(server_args, serving)
    if serving.checkpoint.family.released_as is not None:
        server_args.json_model_override_args = _named_as_ours(server_args, serving)
    server_args.preferred_sampling_params = _sampling_defaults(server_args, serving)
    _set_reasoning_parser(server_args, serving)
    if server_args.device == "cpu":
        _set_cpu_defaults(server_args)
    else:
        _set_gpu_defaults(server_args, serving)
    if server_args.dtype == "auto" and serving.checkpoint.dtype in ("float32", None):
        # SGLang would take float16, whose range these models were not trained for.
        server_args.dtype = "float32" if server_args.device == "cpu" else "bfloat16"
    return True


def _set_reasoning_parser(server_args: ServerArgsLike, serving: Serving) -> None:
    """Set the family's reasoning parser for `auto`. Raises ConfigError for one that takes answers for thinking."""
    ours = serving.checkpoint.family.reasoning_parser
    if ours is None:
        return
    if server_args.reasoning_parser == "auto":
        server_args.reasoning_parser = ours
    elif server_args.reasoning_parser in _ALWAYS_THINK:
        limit = "takes every answer for thinking, also where the chat template switches thinking off"
        raise ConfigError("--reasoning-parser", server_args.reasoning_parser, limit, f"use {ours}")


def _set_prefill(server_args: ServerArgsLike, serving: Serving) -> None:
    """Set how prompts are cut and shared, when they are encoded, and the memory that takes."""
    if server_args.prefill_decode_interval is None:
        server_args.prefill_decode_interval = PREFILL_DECODE_INTERVAL
        least = server_args.prefill_decode_interval_min_bs or PREFILL_DECODE_INTERVAL_MIN_BS
        server_args.prefill_decode_interval_min_bs = least
    if not serving.commit.prompt_mask.is_causal:
        server_args.disable_prefill_cuda_graph = True  # spans of a prompt are not planned ahead
    if serving.commit.prompt_mask.is_whole:
        server_args.disable_radix_cache = True
        server_args.chunked_prefill_size = -1
    if server_args.chunked_prefill_size == -1 and server_args.mem_fraction_static is None:
        server_args.mem_fraction_static = UNCHUNKED_MEM_FRACTION
    _set_page_size(server_args, serving)


def _set_page_size(server_args: ServerArgsLike, serving: Serving) -> None:
    """Let pages consist of blocks where only whole blocks are shared and prompts continue at their edges alone."""
    block_size = serving.commit.prompt_mask.shared_unit(serving.checkpoint.block_size)
    if block_size == 1:
        return
    page_size = block_size if server_args.page_size is None else server_args.page_size
    if page_size % block_size:
        raise ConfigError(
            "--page-size", page_size, f"must be a multiple of the block size, {block_size}", "leave it out"
        )
    if server_args.device != "cpu" and page_size.bit_count() != 1:
        limit = "SGLang's GPU kernels need a power of two"
        raise ConfigError("--page-size", page_size, limit, "use --device cpu")
    chunk = server_args.chunked_prefill_size
    if chunk is not None and chunk > 0 and chunk % page_size:
        limit = f"must be a multiple of the page size, {page_size}, so that chunks end at block boundaries"
        raise ConfigError("--chunked-prefill-size", chunk, limit, "leave it out")
    server_args.page_size = page_size


def _set_cpu_defaults(server_args: ServerArgsLike) -> None:
    ranks.set_threads(server_args.tp_size * server_args.dp_size)
    server_args.sleep_on_idle = True  # an idle scheduler would otherwise spin on a core
    if server_args.max_total_tokens is None:
        server_args.max_total_tokens = CPU_MAX_TOTAL_TOKENS
    if server_args.max_running_requests is None:
        server_args.max_running_requests = CPU_MAX_RUNNING_REQUESTS


def _set_gpu_defaults(server_args: ServerArgsLike, serving: Serving) -> None:
    if server_args.max_running_requests is None:
        server_args.max_running_requests = BATCH_SIZES[-1]
    if not serving.commit.decodes_tokens and server_args.cuda_graph_max_bs_decode is None:
        server_args.cuda_graph_max_bs_decode = 1  # graphs of SGLang's decode, which no step takes


def _refuse_unsupported(server_args: ServerArgsLike) -> None:
    for field, fine, why in _UNSUPPORTED:
        value = getattr(server_args, field)
        if value != fine and value:
            raise ConfigError(f"--{field.replace('_', '-')}", value, why, "leave it out")
    if server_args.grammar_backend == "outlines":
        limit = "its grammars cannot go back behind a draft"
        raise ConfigError("--grammar-backend", "outlines", limit, "use xgrammar or llguidance")
    if server_args.enable_trace and not _has_tracing():
        limit = "needs packages of OpenTelemetry that are not installed"
        raise ConfigError("--enable-trace", True, limit, "pip install 'sglang[tracing]', or leave it out")


def _has_tracing() -> bool:
    """Return whether there is all that SGLang traces with; a part of it comes with other packages."""
    try:
        return all(find_spec(f"opentelemetry.{part}") is not None for part in ("sdk", "exporter.otlp.proto.grpc"))
    except ModuleNotFoundError:
        return False


def _refuse_quantization(server_args: ServerArgsLike, serving: Serving) -> None:
    """Refuse quantised weights where the family cannot have them, or this platform not run them."""
    method = server_args.quantization or serving.checkpoint.quantization
    if method is None:
        return
    if serving.checkpoint.family.floats_only is not None:
        raise ConfigError("--quantization", method, serving.checkpoint.family.floats_only, "leave it out")
    # Triton has an interpreter, too slow to serve but not to test, and SGLang needs no other kernels for this.
    is_interpreted = serving.checkpoint.quantization is None and method == "fp8" and _is_triton_interpreted()
    if server_args.device == "cpu" and is_active() and not is_interpreted:
        limit = "SGLang has no kernels for it on plain PyTorch"
        raise ConfigError("quantization", method, limit, "serve it on a GPU, or weights that are not quantised")


def _is_triton_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _has_weights(server_args: ServerArgsLike, serving: Serving) -> bool:
    """Return whether safetensors files should be in the folder already; those of a hub id may still be fetched."""
    if server_args.load_format not in ("auto", "safetensors"):
        return False
    return Path(server_args.model_path).is_dir() or any(serving.checkpoint.folder.glob("*.safetensors"))


def _named_as_ours(server_args: ServerArgsLike, serving: Serving) -> str:
    """Return `--json-model-override-args` by which SGLang takes our model class, not the one the checkpoint names."""
    given = json.loads(server_args.json_model_override_args or "{}")
    return json.dumps({**given, "architectures": [serving.checkpoint.family.architecture]})


def _sampling_defaults(server_args: ServerArgsLike, serving: Serving) -> dict[str, Any]:
    """Return the checkpoint's sampling defaults under those given with `--preferred-sampling-params`.

    Raises ConfigError for others than all routes can apply.
    """
    given = server_args.preferred_sampling_params or {}
    preferred: dict[str, Any] = json.loads(given) if isinstance(given, str) else given
    for name in preferred.keys() - set(SAMPLING_DEFAULTS):
        limit = f"only {', '.join(SAMPLING_DEFAULTS)} can be preferred, on all routes"
        raise ConfigError("--preferred-sampling-params", {name: preferred[name]}, limit, "let requests say the rest")
    return {**serving.checkpoint.generation_defaults(), **preferred}
