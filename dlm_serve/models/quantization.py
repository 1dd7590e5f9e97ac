"""Let SGLang's quantisation configs speak of its own modules, where a checkpoint speaks of those it was made of."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_loader.auto_loader import STANDARD_STACKED_MAPPING
from sglang.srt.models.utils import WeightsMapper

from dlm_serve.families.family import Tensors
from dlm_serve.models.checkpoint import is_kv_scale

logger = logging.getLogger(__name__)


def _fused_modules() -> dict[str, list[str]]:
    """Return the modules that SGLang's layers have in the place of several of a checkpoint's."""
    fused: dict[str, list[str]] = {}
    for name, part, _ in STANDARD_STACKED_MAPPING.mappings:
        fused.setdefault(name, []).append(part)
    return fused


FUSED_MODULES = _fused_modules()


class ModuleNames(WeightsMapper):  # type: ignore[misc]  # the base is untyped
    """The renaming of a family's tensors, applied to names and patterns of modules."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self._tensors = tensors

    def _map_name(self, key: str) -> str:
        return self._tensors.rename_pattern(key)


def rename_modules(config: QuantizationConfig, names: ModuleNames) -> None:
    """Rename modules in `config` where SGLang's loader has not: its GPTQ and AWQ, among others, ignore `names`."""
    if type(config).apply_weight_name_mapper is QuantizationConfig.apply_weight_name_mapper:
        vars(config).update(_renamed(vars(config), names))


def keep_kv_unquantized(config: QuantizationConfig) -> None:
    """Let `config` not ask for a quantised KV cache, as ModelOpt's may: block attention reads none."""
    wanted = vars(config).get("kv_cache_quant_algo")
    if wanted:
        logger.warning("The checkpoint asks for a KV cache of %s; it is kept in the model's precision", wanted)
        vars(config)["kv_cache_quant_algo"] = None


def _renamed(value: Any, names: ModuleNames) -> Any:
    """Return `value` with names replaced in all strings that it consists of, keys included."""
    if isinstance(value, str):
        return names._map_name(value)
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if isinstance(value, Mapping):
        return {_renamed(key, names): _renamed(item, names) for key, item in value.items()}
    return value


def tensor_names(parameters: Iterable[str], tensors: Tensors) -> set[str]:
    """Return the names of the tensors that a checkpoint has for the `parameters` of a new model."""
    names: set[str] = set()
    for name in parameters:
        path, _, tensor = name.rpartition(".")
        parent, dot, module = path.rpartition(".")
        names.update(f"{parent}{dot}{part}.{tensor}" for part in FUSED_MODULES.get(module, [module]))
    return {tensors.original(name) for name in names if not is_kv_scale(name)}
