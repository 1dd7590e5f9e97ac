"""The model class that vLLM looks up: its Mistral, with the checkpoint's names and the draft adapter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper

from dlm_serve.families import NEMOTRON_LABS_DIFFUSION
from dlm_serve.vllm.draft_adapter import DraftAdapter
from dlm_serve.vllm.model_state import DlmModelState
from dlm_serve.vllm.serving import serving_of

_RENAMED = {f"{theirs}.": f"{ours}." for theirs, ours in NEMOTRON_LABS_DIFFUSION.tensors.renamed.items()}


class NemotronLabsDiffusionForVllm(MistralForCausalLM):  # type: ignore[misc]  # the base is untyped
    """Attention is causal or not row by row, which the attention backend decides; the backbone stays as it is."""

    hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix=_RENAMED)

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.draft_adapter: DraftAdapter | None = None
        self._serving = serving_of(vllm_config.model_config)
        self._most_tokens = vllm_config.scheduler_config.max_num_batched_tokens

    @staticmethod
    def get_model_state_cls() -> type[DlmModelState]:
        """Return what vLLM's runner asks about rows."""
        return DlmModelState

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load the tensors of the checkpoint, and attach the draft adapter beside it. Raises CheckpointError."""
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
        folder = self._serving.checkpoint.draft_adapter(self._serving.config.lora.draft_adapter)
        if folder is not None and self.draft_adapter is None:
            self.draft_adapter = DraftAdapter.attached(folder, self.model, self._most_tokens)
        return loaded
