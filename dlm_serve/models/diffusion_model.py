"""The model classes that SGLang looks up by their names: each family's backbone with what decoding adds to it.

Attention is causal or not row by row, which the attention backend decides; the backbone stays as it is.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, ClassVar

import torch
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_loader.weight_utils import default_weight_loader, maybe_remap_kv_scale_name

from dlm_serve.errors import CheckpointError
from dlm_serve.families import FAMILIES, Family
from dlm_serve.models.checkpoint import Checkpoint, Shape, is_kv_scale
from dlm_serve.models.draft_adapter import DraftAdapter
from dlm_serve.models.logits import BlockLogitsProcessor
from dlm_serve.models.quantization import (
    FUSED_MODULES,
    ModuleNames,
    keep_kv_unquantized,
    rename_modules,
    tensor_names,
)


class DiffusionMixin:
    """Over a backbone of the Llama kind: logits of block rows, tensor names, draft adapter, room for late positions."""

    family: ClassVar[Family]
    hf_to_sglang_mapper: ClassVar[ModuleNames]
    packed_modules_mapping: ClassVar[Mapping[str, list[str]]] = FUSED_MODULES
    """What SGLang's loader reads to make a quantisation config speak of this model's modules."""
    attention_window: int | None = None
    """How many committed tokens a block attends to, the last ones; all where None."""
    updates_in_parts: bool = True
    """Whether some tensors can be replaced without the others."""
    config: Any
    model: Any
    named_parameters: Any

    def __init__(self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = "") -> None:
        if quant_config is not None:
            rename_modules(quant_config, self.hf_to_sglang_mapper)
            keep_kv_unquantized(quant_config)
        super().__init__(config=config, quant_config=quant_config, prefix=prefix)  # type: ignore[call-arg]  # the backbone's
        self.logits_processor = BlockLogitsProcessor(config)
        self.draft_adapter: DraftAdapter | None = None
        self._quantized_tensors: Set[str] = set()
        if quant_config is not None:
            self._quantized_tensors = tensor_names((name for name, _ in self.named_parameters()), self.family.tensors)
        self._tensor_shapes: dict[str, Shape] = {}  # of all that was loaded

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        """Load the tensors of the checkpoint: all at first, later any. Raises CheckpointError naming those amiss.

        What comes as a sequence is checked before the first tensor is replaced.
        """
        is_part = self.updates_in_parts and bool(self._tensor_shapes)
        if isinstance(weights, Sequence):
            self.check_tensors({name: tuple(tensor.shape) for name, tensor in weights}, is_part=is_part)
        expected, shapes = self._expected_tensors(), dict[str, Shape]()

        def renamed() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                shapes[name] = tuple(tensor.shape)
                if is_kv_scale(name):
                    self._load_kv_scale(self.family.tensors.rename(name), tensor)
                elif name in expected:
                    yield self.family.tensors.rename(name), tensor

        loaded = super().load_weights(renamed())  # type: ignore[misc]  # the backbone's
        self.check_tensors(shapes, is_part=is_part)
        self._tensor_shapes |= shapes
        return loaded

    def check_tensors(self, shapes: Mapping[str, Shape], *, is_part: bool = False) -> None:
        """Raise CheckpointError unless tensors of these names and shapes are the model's, or part of them."""
        self._checkpoint().check_tensor_names(shapes, self._expected_tensors(), is_part=is_part)
        for name, shape in shapes.items():
            expected = self._tensor_shapes.get(name, shape)
            if shape != expected:
                raise CheckpointError(name, shape, f"has shape {expected}", "use weights of the same model")

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint.read(self.family, self.config.to_dict(), Path(self.config.name_or_path or "."))

    def _expected_tensors(self) -> Set[str]:
        """Return the names of the tensors of a whole checkpoint."""
        return self._quantized_tensors or self._checkpoint().tensor_names

    def _load_kv_scale(self, name: str, scale: torch.Tensor) -> None:
        """Set a scale of the KV cache, if it is quantised: not all backbones know where it belongs."""
        parameters = dict(self.named_parameters())
        found = parameters.get(maybe_remap_kv_scale_name(name, parameters))
        if found is not None:
            default_weight_loader(found, scale)

    def load_draft_adapter(self, folder: Path) -> None:
        """Attach the LoRA in `folder` to the output projections. Raises CheckpointError."""
        self.draft_adapter = DraftAdapter.load(folder, *self._placement())
        for layer_id in range(self.model.start_layer, self.model.end_layer):
            self.draft_adapter.attach(layer_id, self.model.layers[layer_id].self_attn.o_proj)

    def draft_adapter_update(self, folder: Path | None) -> DraftAdapter | None:
        """Return the LoRA in `folder`, which can take the place of the one that is attached; None is no LoRA.

        Raises CheckpointError if it cannot.
        """
        if folder is None:
            return None
        if self.draft_adapter is None:
            limit = "the server was started without a draft adapter"
            raise CheckpointError("draft adapter", str(folder), limit, "start it with one, or lora.draft_adapter: none")
        update = DraftAdapter.load(folder, *self._placement())
        self.draft_adapter.check_update(update)
        return update

    def extend_rotary_cache(self, max_position: int) -> None:
        """Make positions up to `max_position` valid: the last block of a full context reaches past it."""
        for layer_id in range(self.model.start_layer, self.model.end_layer):
            self.model.layers[layer_id].self_attn.rotary_emb._ensure_cos_sin_cache_length(max_position)

    def _placement(self) -> tuple[torch.device, torch.dtype]:
        """Return where the weights are, and of what type."""
        norm = self.model.norm.weight
        return norm.device, norm.dtype


def model_class(family: Family) -> type:
    """Return the class of a family's models, named as SGLang looks it up."""
    backbone: type = pkgutil.resolve_name(family.backbone)
    attributes = {"family": family, "hf_to_sglang_mapper": ModuleNames(family.tensors), "__module__": __name__}
    return type(family.architecture, (DiffusionMixin, backbone), attributes)


EntryClass = [model_class(family) for family in FAMILIES]
