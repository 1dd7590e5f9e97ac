"""Name all of SGLang's that dlm-serve stands on, beside what it changes (`sglang.ledger`)."""

from __future__ import annotations

from dlm_serve.seams import Seam

_SRT = "sglang.srt"

ENTRY_SEAMS = (
    Seam(f"{_SRT}.plugins.hook_registry.HookRegistry.register", ("target", "hook", "hook_type", "source")),
    Seam(f"{_SRT}.plugins.hook_registry.HookRegistry.apply_hooks"),
    Seam(f"{_SRT}.speculative.spec_info.SpeculativeAlgorithm.register", ("name", "supports_overlap", "spec_class")),
)
"""Probed, with the entry hooks, in every process that loads the plugin."""

SEAMS = (
    Seam(f"{_SRT}.managers.tokenizer_manager.TokenizerManager.init_model_config"),
    Seam(f"{_SRT}.managers.tokenizer_manager.TokenizerManager.generate_request", ("obj", "request")),
    Seam(f"{_SRT}.managers.tokenizer_manager.TokenizerManager.update_weights_from_disk", ("obj", "request")),
    Seam(f"{_SRT}.managers.tokenizer_manager.TokenizerManager._update_model_path_info", ("model_path", "load_format")),
    Seam(f"{_SRT}.managers.tokenizer_manager.TokenizerManager.create_abort_task", ("obj",)),
    Seam(f"{_SRT}.managers.tokenizer_manager.TokenizerManager.abort_request", ("rid",)),
    Seam(f"{_SRT}.managers.tokenizer_manager.TokenizerManager._init_req_state", ("obj", "request")),
    Seam(f"{_SRT}.managers.tokenizer_manager.TokenizerManager._tokenize_one_request", ("obj",)),
    Seam(f"{_SRT}.managers.tokenizer_manager.TokenizerManager._create_tokenized_object", ("obj", "input_ids")),
    Seam(f"{_SRT}.managers.tokenizer_manager.TokenizerManager._send_one_request", ("tokenized_obj",)),
    Seam(
        f"{_SRT}.managers.tokenizer_manager.TokenizerManager.update_request_meta_info",
        ("meta_info", "state", "customized_info"),
    ),
    Seam(f"{_SRT}.entrypoints.ollama.serving.OllamaServing._convert_options_to_sampling_params", ("options",)),
    Seam(
        f"{_SRT}.entrypoints.ollama.serving.OllamaServing._stream_chat_response",
        ("gen_request", "raw_request", "model_name"),
    ),
    Seam(
        f"{_SRT}.entrypoints.ollama.serving.OllamaServing._stream_generate_response",
        ("gen_request", "raw_request", "model_name"),
    ),
    Seam(f"{_SRT}.entrypoints.ollama.serving.OllamaServing.get_tags"),
    Seam(f"{_SRT}.entrypoints.openai.serving_chat.OpenAIServingChat._get_reasoning_from_request", ("request",)),
    Seam(f"{_SRT}.parser.template_detection.ReasoningToggleConfig", ("toggle_param", "default_enabled")),
    Seam(f"{_SRT}.managers.scheduler.Scheduler.init_model_worker"),
    Seam(f"{_SRT}.managers.scheduler.Scheduler.init_weight_updater"),
    Seam(f"{_SRT}.managers.scheduler.Scheduler.init_batch_result_processor"),
    Seam(f"{_SRT}.managers.scheduler.Scheduler.init_metrics_collector"),
    Seam(f"{_SRT}.managers.scheduler.Scheduler.init_metrics_reporter"),
    Seam(f"{_SRT}.managers.scheduler.Scheduler.process_batch_result", ("batch", "result")),
    Seam(f"{_SRT}.managers.scheduler.Scheduler.send_abort_output", ("abort_req", "req")),
    Seam(
        f"{_SRT}.managers.scheduler_components.metrics_reporter.SchedulerMetricsReporter",
        ("scheduler", "metrics_collector_context", "metrics_collector"),
    ),
    Seam(
        f"{_SRT}.managers.scheduler_components.metrics_reporter.SchedulerMetricsReporter.report_decode_stats",
        ("can_run_cuda_graph", "running_batch", "num_generated_tokens"),
    ),
    Seam(f"{_SRT}.managers.scheduler_components.metrics_reporter.SchedulerMetricsReporter.update_spec_metrics"),
    Seam(f"{_SRT}.managers.scheduler_components.pool_stats_observer.SchedulerPoolStatsObserver.get_pool_stats"),
    Seam(
        f"{_SRT}.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor"
        ".process_batch_result_prefill",
        ("batch", "result"),
    ),
    Seam(
        f"{_SRT}.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor"
        ".advance_grammar_fsm",
        ("result", "batch"),
    ),
    Seam(
        f"{_SRT}.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor"
        "._apply_prefill_logprobs",
        ("i", "extend_input_len_per_req", "extend_logprob_start_len_per_req", "logprob_pt"),
    ),
    Seam(
        f"{_SRT}.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor"
        "._apply_chunked_prefill_logprobs",
        ("i", "extend_input_len_per_req", "extend_logprob_start_len_per_req", "logprob_pt"),
    ),
    Seam(f"{_SRT}.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager", ("tp_worker",)),
    Seam(f"{_SRT}.managers.io_struct.msgpack_encode", ("obj",)),
    Seam(f"{_SRT}.managers.io_struct.msgpack_decode", ("data",)),
    Seam(f"{_SRT}.managers.io_struct.UpdateWeightFromDiskReqOutput", ("success", "message")),
    Seam(f"{_SRT}.managers.io_struct.UpdateWeightsFromTensorReqOutput", ("success", "message")),
    Seam(f"{_SRT}.managers.scheduler.Scheduler.get_output_streamer_class"),
    Seam(f"{_SRT}.managers.scheduler.Scheduler._reqs_finishing_inflight", ("batch",)),
    Seam(f"{_SRT}.managers.scheduler.Scheduler._poll_timeout_aborts"),
    Seam(f"{_SRT}.managers.scheduler.Scheduler.init_request_dispatcher"),
    Seam(f"{_SRT}.managers.scheduler.Scheduler.get_internal_state", ("recv_req",)),
    Seam(f"{_SRT}.managers.scheduler.Scheduler.set_internal_state", ("recv_req",)),
    Seam(f"{_SRT}.managers.tokenizer_manager.TokenizerManager.get_internal_state"),
    Seam(f"{_SRT}.managers.tokenizer_manager.TokenizerManager.set_internal_state", ("obj",)),
    Seam(f"{_SRT}.managers.io_struct.SetInternalStateReq", ("server_args",)),
    Seam(f"{_SRT}.managers.io_struct.SetInternalStateReqOutput", ("updated",)),
    Seam(f"{_SRT}.utils.auth.auth_level", ("level",)),
    Seam("starlette.applications.Starlette.build_middleware_stack"),
    Seam("sglang.utils.TypeBasedDispatcher"),
    Seam(f"{_SRT}.utils.broadcast_pyobj", ("data", "rank", "dist_group", "src")),
    Seam(
        f"{_SRT}.managers.scheduler_components.output_streamer.SchedulerOutputStreamer._stream_output_generation",
        ("reqs", "return_logprob", "skip_req"),
    ),
    Seam(
        f"{_SRT}.managers.scheduler_components.output_streamer.SchedulerOutputStreamer.build_additional_customized_info",
        ("reqs",),
    ),
    Seam(f"{_SRT}.managers.schedule_batch.Req.update_finish_state", ("new_accepted_len",)),
    Seam(f"{_SRT}.managers.schedule_batch.Req.update_reasoning_tokens", ("token_id", "think_end_ids")),
    Seam(
        f"{_SRT}.managers.schedule_batch.Req.update_self_opened_reasoning_tokens",
        ("token_id", "think_start_ids", "think_end_ids"),
    ),
    Seam(f"{_SRT}.managers.schedule_batch.Req._stop_match_tail_len", ("new_accepted_len",)),
    Seam(f"{_SRT}.managers.schedule_batch.Req.owned_kv_len"),
    Seam(f"{_SRT}.managers.schedule_batch.FINISH_MATCHED_STR", ("matched",)),
    Seam(f"{_SRT}.managers.schedule_batch.Req.log_time_stats"),
    Seam(f"{_SRT}.managers.schedule_batch.FINISH_MATCHED_TOKEN", ("matched",)),
    Seam(f"{_SRT}.speculative.base_spec_worker.BaseSpecWorker.init_attention_backends"),
    Seam(f"{_SRT}.mem_cache.kv_index_translator.KVIndexTranslator.bind_and_verify_backends", ("backends",)),
    Seam(f"{_SRT}.speculative.spec_info.SpecInputType.DFLASH_DRAFT"),
    Seam(f"{_SRT}.speculative.spec_info.SpecInputType.DFLASH_VERIFY"),
    Seam(
        f"{_SRT}.managers.utils.GenerationBatchResult",
        ("accept_lens", "new_seq_lens", "next_draft_input", "num_non_draft_tokens_per_req"),
    ),
    Seam(f"{_SRT}.managers.tp_worker.TpModelWorker.forward_batch_generation", ("batch", "forward_batch", "is_verify")),
    Seam(f"{_SRT}.managers.overlap_utils.FutureMap"),
    Seam(f"{_SRT}.mem_cache.allocation_sizing.get_alloc_reserve_per_decode"),
    Seam(f"{_SRT}.mem_cache.allocation_sizing.get_alloc_page_size"),
    Seam(f"{_SRT}.mem_cache.memory_pool.KVWriteLoc"),
    Seam(f"{_SRT}.runtime_context.attention_backends"),
    Seam(f"{_SRT}.runtime_context.get_exec"),
    Seam(f"{_SRT}.runtime_context.get_parallel"),
    Seam(f"{_SRT}.runtime_context.get_schedule"),
    Seam(f"{_SRT}.speculative.spec_registry.CustomSpecAlgo"),
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
    Seam(f"{_SRT}.model_executor.cuda_graph_config.PhaseConfig", ("backend", "bs", "full_prefill_max_req")),
    Seam(f"{_SRT}.model_executor.runner_utils.capture_mode.model_capture_mode"),
    Seam(f"{_SRT}.model_executor.runner_utils.pool.get_or_create_global_graph_capture_stream"),
    Seam(f"{_SRT}.model_executor.runner_utils.shared_read_event.make_external_event", ("device_module",)),
    Seam(f"{_SRT}.mem_cache.kv_index_translator.KVIndexTranslator.bind_own_plan", ("forward_batch",)),
    Seam(f"{_SRT}.speculative.spec_utils.GrammarTree.from_linear_chain", ("verify_ids_2d",)),
    Seam(f"{_SRT}.speculative.spec_utils.GrammarTree.resolve"),
    Seam(f"{_SRT}.speculative.spec_registry.CustomSpecAlgo.supports_grammar_overlap"),
    Seam(f"{_SRT}.managers.scheduler.Scheduler._advance_pending_grammar"),
    Seam(f"{_SRT}.utils.common.async_d2h", ("tensor",)),
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
    Seam(
        f"{_SRT}.layers.quantization.base_config.QuantizationConfig.apply_weight_name_mapper", ("hf_to_sglang_mapper",)
    ),
    Seam(f"{_SRT}.layers.quantization.unquant.UnquantizedLinearMethod.apply", ("layer", "x", "bias")),
    Seam(f"{_SRT}.models.utils.WeightsMapper._map_name", ("key",)),
    Seam(f"{_SRT}.model_loader.auto_loader.STANDARD_STACKED_MAPPING.mappings"),
    Seam(f"{_SRT}.model_loader.weight_utils.maybe_remap_kv_scale_name", ("name", "params_dict")),
    Seam(f"{_SRT}.models.llama.LlamaForCausalLM._load_weights_v2", ("weights",)),
    Seam(f"{_SRT}.models.ministral3.Ministral3ForCausalLM"),
    Seam(f"{_SRT}.models.ministral3._get_llama_4_attn_scale", ("positions_ids", "beta", "max_position_embeddings")),
)
"""Probed, with the hooks, in the main process when it serves one of our models, before it starts another process."""
