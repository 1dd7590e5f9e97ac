"""The model classes that SGLang looks up by their names: each family's backbone with what decoding adds to it.

Attention is causal or not row by row, which the attention backend decides; the backbone stays as it is.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from sglang.srt.layers.quantization.base_config import QuantizationConfig

from dlm_serve.families import FAMILIES, Family
from dlm_serve.models.checkpoint import Checkpoint
from dlm_serve.models.draft_adapter import DraftAdapter
from dlm_serve.models.logits import BlockLogitsProcessor


class DiffusionMixin:
    """Over a backbone of the Llama kind: logits of block rows, tensor names, draft adapter, room for late positions."""

    family: ClassVar[Family]
    attention_window: int | None = None
    """How many committed tokens a block attends to, the last ones; all where None."""
    config: Any
    model: Any

    def __init__(self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = "") -> None:
        super().__init__(config=config, quant_config=quant_config, prefix=prefix)  # type: ignore[call-arg]  # the backbone's
        self.logits_processor = BlockLogitsProcessor(config)
        self.draft_adapter: DraftAdapter | None = None
        self._is_loaded = False

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        """Load the tensors of the checkpoint: all at first, later any. Raises CheckpointError naming those amiss."""
        names: list[str] = []

        def renamed() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                names.append(name)
                yield self.family.tensors.rename(name), tensor

        loaded = super().load_weights(renamed())  # type: ignore[misc]  # the backbone's
        checkpoint = Checkpoint.read(self.family, self.config.to_dict(), Path(self.config.name_or_path or "."))
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


def model_class(family: Family) -> type:
    """Return the class of a family's models, named as SGLang looks it up."""
    backbone: type = pkgutil.resolve_name(family.backbone)
    return type(family.architecture, (DiffusionMixin, backbone), {"family": family, "__module__": __name__})


EntryClass = [model_class(family) for family in FAMILIES]
