"""Configure vLLM for a model of ours, and refuse what does not go with it."""

from __future__ import annotations

from typing import Any

from vllm.config.diffusion import DiffusionConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from dlm_serve.errors import ConfigError
from dlm_serve.models.configuration import NemotronLabsDiffusionConfig
from dlm_serve.vllm import ledger
from dlm_serve.vllm.graphs import capture_sizes
from dlm_serve.vllm.serving import Serving, serving_of

SCHEDULER = "dlm_serve.vllm.scheduler.DlmScheduler"

_NOT_SERVED = {
    "speculative_config": ("--speculative-config", "drafts are the model's own"),
    "lora_config": ("--enable-lora", "adapters per request are not supported"),
    "kv_transfer_config": ("--kv-transfer-config", "blocks that are denoised cannot be moved"),
    "diffusion_config": ("--diffusion-config", "dlm-serve sets it"),
}
"""Fields of vLLM's VllmConfig that must be None: the flag of each, and why."""


class VllmNemotronLabsDiffusionConfig(NemotronLabsDiffusionConfig):
    """The checkpoint's configuration with the names under which vLLM's Mistral reads the scaling of queries."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        beta = self.rope_parameters.get("llama_4_scaling_beta")
        if beta is not None:
            period = self.rope_parameters["original_max_position_embeddings"]
            self.llama_4_scaling = {"original_max_position_embeddings": period, "beta": beta}


class ServedModel(VerifyAndUpdateConfig):  # type: ignore[misc]  # the base is untyped
    """What vLLM asks, by the model's architecture, when it builds the configuration of an engine."""

    @classmethod
    def verify_and_update_config(cls, vllm_config: Any) -> None:
        """Let rows carry blocks, and the scheduler give them their width. Raises what a server refuses to start with.

        vLLM reserves as many drafted tokens for a request as its DiffusionConfig has. The checkpoint's configuration
        has no `canvas_length`: with one vLLM would refuse sampling parameters and grammars, and emit no token with a
        prompt.
        """
        ledger.require()
        ledger.install()
        serving = serving_of(vllm_config.model_config)
        _check(vllm_config, serving)
        vllm_config.diffusion_config = DiffusionConfig(canvas_length=serving.width - 1)
        vllm_config.scheduler_config.scheduler_cls = SCHEDULER
        attention = vllm_config.attention_config
        if attention.backend is None:
            attention.use_non_causal = True
            if current_platform.is_cuda():
                attention.backend = AttentionBackendEnum.CUSTOM  # which the plugin registers
        compilation = vllm_config.compilation_config
        if compilation.max_cudagraph_capture_size is None and compilation.cudagraph_capture_sizes is None:
            num_rows = vllm_config.scheduler_config.max_num_seqs
            compilation.cudagraph_capture_sizes = capture_sizes(serving.width, num_rows)
        defaults = serving.checkpoint.generation_defaults()
        overridden = vllm_config.model_config.override_generation_config
        vllm_config.model_config.override_generation_config = {**defaults, **overridden}


def _check(vllm_config: Any, serving: Serving) -> None:
    """Raise ConfigError for what is not supported."""
    for name, (flag, why) in _NOT_SERVED.items():
        if getattr(vllm_config, name) is not None:
            raise ConfigError(flag, "<as given>", why, "leave it out")
    ranks = vllm_config.parallel_config.pipeline_parallel_size
    if ranks > 1:
        limit = "every rank must know how rows enter a forward"
        raise ConfigError("--pipeline-parallel-size", ranks, limit, "use --tensor-parallel-size")
    if not vllm_config.use_v2_model_runner:
        raise ConfigError("VLLM_USE_V2_MODEL_RUNNER", "0", "blocks need the V2 model runner", "leave it out")
    batched = vllm_config.scheduler_config.max_num_batched_tokens
    if batched < serving.width:
        limit = f"at least {serving.width}, the tokens of a row"
        raise ConfigError("--max-num-batched-tokens", batched, limit, "raise it")
