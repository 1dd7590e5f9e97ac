"""The SGLang contract: which versions we extend, the seams we stand on, and a probe of each.

The only module that knows about versions. The ledger of what we change at these seams is
`plugin.HOOKS`.
"""

from __future__ import annotations

import inspect
import pkgutil
from dataclasses import dataclass
from importlib.metadata import version

from dlm_serve.errors import UnsupportedSGLangError

SUPPORTED_VERSIONS = ("0.5.23",)


@dataclass(frozen=True)
class Seam:
    """Something of SGLang's that we call, subclass or hook, and that not all of its own models and backends stand on.

    A dotted name and parameters it must have.
    """

    target: str
    parameters: tuple[str, ...] = ()

    def problem(self) -> str | None:
        """What is wrong with it in the installed SGLang, or None."""
        try:
            found = pkgutil.resolve_name(self.target)
        except (ImportError, AttributeError) as error:
            return f"{self.target} is missing ({error})"
        if not self.parameters:
            return None
        available = inspect.signature(found).parameters
        missing = [name for name in self.parameters if name not in available]
        return f"{self.target} has no parameter {', '.join(missing)}" if missing else None


_SRT = "sglang.srt"

CORE_SEAMS = (
    Seam(f"{_SRT}.plugins.hook_registry.HookRegistry.register", ("target", "hook", "hook_type")),
    Seam(f"{_SRT}.plugins.hook_registry.HookRegistry.apply_hooks"),
    Seam(f"{_SRT}.server_args.ServerArgs.resolve_once"),
    Seam(f"{_SRT}.speculative.spec_info.SpeculativeAlgorithm.register", ("name", "supports_overlap", "spec_class")),
)
"""Probed in every process that loads the plugin."""

SEAMS = (
    Seam(f"{_SRT}.managers.tokenizer_manager.TokenizerManager._create_tokenized_object", ("obj", "input_ids")),
    Seam(f"{_SRT}.managers.tokenizer_manager.TokenizerManager._send_one_request", ("tokenized_obj",)),
    Seam(
        f"{_SRT}.managers.tokenizer_manager.TokenizerManager.update_request_meta_info",
        ("meta_info", "state", "customized_info"),
    ),
    Seam(f"{_SRT}.managers.io_struct.GenerateReqInput.normalize_batch_and_arguments"),
    Seam(f"{_SRT}.entrypoints.api_contract.generate_contract_error", ("body",)),
    Seam(f"{_SRT}.configs.model_config.ModelConfig.get_default_sampling_params"),
    Seam(f"{_SRT}.entrypoints.openai.serving_completions.OpenAIServingCompletion._build_sampling_params", ("request",)),
    Seam(f"{_SRT}.speculative.base_spec_worker.BaseSpecWorker"),
    Seam(f"{_SRT}.speculative.spec_info.SpecInputType.DFLASH_DRAFT"),
    Seam(f"{_SRT}.speculative.spec_info.SpecInputType.DFLASH_VERIFY"),
    Seam(
        f"{_SRT}.managers.utils.GenerationBatchResult",
        ("accept_lens", "new_seq_lens", "next_draft_input", "num_non_draft_tokens_per_req"),
    ),
    Seam(f"{_SRT}.managers.tp_worker.TpModelWorker.forward_batch_generation", ("batch", "forward_batch", "is_verify")),
    Seam(f"{_SRT}.managers.tp_worker.TpModelWorker.get_worker_info"),
    Seam(f"{_SRT}.managers.overlap_utils.FutureMap"),
    Seam(f"{_SRT}.managers.scheduler.Scheduler._reqs_finishing_inflight", ("batch",)),
    Seam(f"{_SRT}.managers.scheduler.Scheduler.get_output_streamer_class"),
    Seam(f"{_SRT}.managers.schedule_batch.Req.update_finish_state", ("new_accepted_len",)),
    Seam(f"{_SRT}.managers.schedule_batch.Req.update_spec_correct_drafts_histogram", ("num_correct_drafts",)),
    Seam(f"{_SRT}.managers.schedule_batch.Req.owned_kv_len"),
    Seam(f"{_SRT}.managers.scheduler_components.output_streamer._GenerationStreamAccumulator.accept", ("req",)),
    Seam(f"{_SRT}.mem_cache.allocation_sizing.get_req_to_token_extra_context_len"),
    Seam(f"{_SRT}.mem_cache.allocation_sizing.get_alloc_reserve_per_decode"),
    Seam(f"{_SRT}.mem_cache.allocation_sizing.get_alloc_page_size"),
    Seam(f"{_SRT}.mem_cache.memory_pool.KVWriteLoc"),
    Seam(f"{_SRT}.runtime_context.get_parallel"),
    Seam(f"{_SRT}.runtime_context.get_schedule"),
    Seam(f"{_SRT}.speculative.spec_registry.CustomSpecAlgo"),
    Seam(
        f"{_SRT}.mem_cache.allocation.assign_req_to_token_pool_func",
        ("req_pool_indices", "req_to_token", "start_offset", "end_offset", "out_cache_loc", "batch_size"),
    ),
    Seam(f"{_SRT}.distributed.parallel_state.graph_capture", ("stream",)),
    Seam(f"{_SRT}.model_executor.forward_context.forward_context", ("ctx", "forward_batch")),
    Seam(f"{_SRT}.model_executor.forward_context.ForwardContext", ("attn_backend",)),
    Seam(f"{_SRT}.model_executor.runner.base_cuda_graph_runner.freeze_gc", ("enable_cudagraph_gc",)),
    Seam(
        f"{_SRT}.model_executor.runner_backend.full_cuda_graph_backend.FullCudaGraphBackend.capture_one",
        ("shape_key", "forward_fn"),
    ),
    Seam(
        f"{_SRT}.model_executor.runner_backend.full_cuda_graph_backend.FullCudaGraphBackend.replay",
        ("shape_key", "static_forward_batch"),
    ),
    Seam(f"{_SRT}.model_executor.runner_utils.capture_mode.model_capture_mode"),
    Seam(f"{_SRT}.model_executor.runner_utils.pool.get_or_create_global_graph_capture_stream"),
    Seam(f"{_SRT}.model_executor.runner_utils.shared_read_event.make_external_event", ("device_module",)),
    Seam(f"{_SRT}.mem_cache.kv_index_translator.KVIndexTranslator.bind_own_plan", ("forward_batch",)),
    Seam(
        f"{_SRT}.model_executor.model_runner_components.attention_backend_setup._build_resolved_backend",
        ("model_runner", "resolved"),
    ),
    Seam(f"{_SRT}.model_executor.model_runner.ModelRunner._preprocess_logits", ("logits_output", "sampling_info")),
    Seam(f"{_SRT}.layers.attention.hybrid_attn_backend.HybridAttnBackend._select_backend", ("forward_mode",)),
    Seam(f"{_SRT}.layers.rotary_embedding.yarn.YaRNScalingRotaryEmbedding._ensure_cos_sin_cache_length"),
    Seam(f"{_SRT}.layers.sampler.Sampler._sync_token_ids_across_tp"),
    Seam(
        f"{_SRT}.layers.sampler.Sampler.forward",
        ("logits_output", "sampling_info", "return_logprob", "top_logprobs_nums", "token_ids_logprobs", "positions"),
    ),
    Seam(
        f"{_SRT}.layers.logits_processor.LogitsProcessor._copy_logits_to_buffer",
        ("logits", "logits_metadata", "use_buffer", "softcap"),
    ),
    Seam(
        f"{_SRT}.layers.logits_processor.LogitsProcessor._compute_lm_head",
        ("hidden_states", "lm_head", "embedding_bias", "out"),
    ),
    Seam(f"{_SRT}.layers.rotary_embedding.base.RotaryEmbedding._ensure_cos_sin_cache_length"),
    Seam(f"{_SRT}.managers.schedule_batch.FINISH_MATCHED_TOKEN", ("matched",)),
    Seam(f"{_SRT}.models.ministral3.Ministral3ForCausalLM"),
    Seam(f"{_SRT}.models.ministral3._get_llama_4_attn_scale", ("positions_ids", "beta", "max_position_embeddings")),
)
"""Probed in the main process when it serves one of our models, before any other process is started."""


def require(seams: tuple[Seam, ...]) -> None:
    """Raises UnsupportedSGLangError, with all that is wrong, unless the installed SGLang has these seams."""
    installed = version("sglang")
    problems = [problem for seam in seams if (problem := seam.problem())]
    if installed not in SUPPORTED_VERSIONS:
        problems.insert(0, f"sglang {installed} is not among the supported versions")
    if problems:
        raise UnsupportedSGLangError(
            f"dlm-serve cannot extend the installed sglang {installed}: {'; '.join(problems)}. "
            f"Install sglang=={SUPPORTED_VERSIONS[-1]}, or a dlm-serve release made for yours."
        )
