"""Nemotron-Labs-Diffusion on SGLang's Ministral-3.

The backbone is Ministral-3 as it is: YaRN whose cos/sin factor is 1.0 for `mscale == mscale_all_dim`,
Llama-4 query scaling, `head_dim` of its own. What differs are the tensor names, the draft adapter, and
that attention is causal or not row by row, which the attention backend decides.
Reference: `modeling_nemotron_labs_diffusion.py` of the release.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.ministral3 import Ministral3ForCausalLM

from dlm_serve.models.checkpoint import Checkpoint
from dlm_serve.models.configuration import NemotronLabsDiffusionConfig
from dlm_serve.models.draft_adapter import DraftAdapter
from dlm_serve.models.logits import BlockLogitsProcessor
from dlm_serve.models.query_scale import QueryScale

_RENAMED = {"encoder.": "model.", "diffusion_head.": "lm_head."}


class NemotronLabsDiffusionModel(Ministral3ForCausalLM):  # type: ignore[misc]  # the base is untyped
    """The model class that SGLang looks up by the checkpoint's architecture name."""

    def __init__(
        self, config: NemotronLabsDiffusionConfig, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__(config=config, quant_config=quant_config, prefix=prefix)
        self.logits_processor = BlockLogitsProcessor(config)
        scale = QueryScale()
        for layer_id in range(self.model.start_layer, self.model.end_layer):
            attention = self.model.layers[layer_id].self_attn
            scale.attach(attention, is_first=layer_id == self.model.start_layer)
        self.draft_adapter: DraftAdapter | None = None
        self._is_loaded = False

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        """Load the tensors of the checkpoint: all at first, later any. Raises CheckpointError naming those amiss."""
        names: list[str] = []

        def renamed() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                names.append(name)
                yield _rename(name), tensor

        loaded = super().load_weights(renamed())
        checkpoint = Checkpoint.model_validate({**self.config.to_dict(), "folder": self.config.name_or_path or "."})
        checkpoint.check_tensor_names(names, is_update=self._is_loaded)
        self._is_loaded = True
        return loaded

    def load_draft_adapter(self, folder: Path) -> None:
        """Attach the LoRA in `folder` to the output projections. Raises CheckpointError."""
        norm = self.model.norm.weight
        self.draft_adapter = DraftAdapter.load(folder, norm.device, norm.dtype)
        for layer_id in range(self.model.start_layer, self.model.end_layer):
            self.draft_adapter.attach(layer_id, self.model.layers[layer_id].self_attn.o_proj)

    def extend_rotary_cache(self, max_position: int) -> None:
        """Make positions up to `max_position` valid: the last block of a full context reaches past it."""
        for layer_id in range(self.model.start_layer, self.model.end_layer):
            self.model.layers[layer_id].self_attn.rotary_emb._ensure_cos_sin_cache_length(max_position)


def _rename(name: str) -> str:
    for theirs, ours in _RENAMED.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


EntryClass = NemotronLabsDiffusionModel
