"""The plugin that vLLM loads in each of its processes."""

from __future__ import annotations

from dlm_serve.families import NEMOTRON_LABS_DIFFUSION


def register() -> None:
    """Entry point of `vllm.general_plugins`: make vLLM know our model, its configuration and how it is served.

    Nothing else of vLLM changes unless a model of ours is served: see `configuration.ServedModel`.
    """
    from transformers import AutoConfig
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from dlm_serve.vllm.configuration import ServedModel, VllmNemotronLabsDiffusionConfig

    architecture = NEMOTRON_LABS_DIFFUSION.architecture
    AutoConfig.register(VllmNemotronLabsDiffusionConfig.model_type, VllmNemotronLabsDiffusionConfig, exist_ok=True)
    ModelRegistry.register_model(architecture, "dlm_serve.vllm.model:NemotronLabsDiffusionForVllm")
    MODELS_CONFIG_MAP[architecture] = ServedModel
    if not AttentionBackendEnum.CUSTOM.is_overridden():
        register_backend(AttentionBackendEnum.CUSTOM, "dlm_serve.vllm.attention.DlmAttentionBackend")
