"""Read the small model's draft adapter, make its drafts worse if asked, and bound what it can add.

Noise in the adapter changes drafts alone, so the answers stay the same while fewer drafted tokens are accepted.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from dlm_serve.errors import CheckpointError, ConfigError
from dlm_serve.models.checkpoint import AdapterConfig

__all__ = ["Adapter", "Tensors", "name_parts"]

Tensors = dict[str, torch.Tensor]

LARGEST_NOISE = 100.0
"""In standard deviations of a B; 4 already leave next to nothing of nano's drafts."""

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"(.*layers\.)(\d+)(\.self_attn\.o_proj\.lora_([AB])\.weight)")


@dataclass(frozen=True)
class Adapter:
    """The low-rank addition B A to the output projection of each layer."""

    folder: Path
    """Where its configuration is."""
    scale: float
    tensors: Tensors
    """By name, A [r, heads * head_dim] and B [h, r] of each layer."""

    @classmethod
    def load(cls, folder: Path) -> Adapter:
        """Return the adapter in `folder`. Raises CheckpointError if it adds to anything but `o_proj`."""
        config = AdapterConfig.model_validate_json((folder / _CONFIG).read_text())
        tensors = load_file(folder / _WEIGHTS)
        for name in tensors:
            name_parts(name)
        return cls(folder, config.scale, tensors)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all weights."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def write(self, out: Path) -> None:
        """Write the adapter to the folder `out`, which exists; its configuration last, since that is what marks one."""
        save_file(self.tensors, out / _WEIGHTS)
        shutil.copy(self.folder / _CONFIG, out)

    def with_noise(self, noise: float) -> Adapter:
        """Return an adapter with noise of `noise` standard deviations of each B added to it. Raises ConfigError."""
        if not 0 <= noise <= LARGEST_NOISE:
            raise ConfigError("--draft-noise", noise, f"is not within [0, {LARGEST_NOISE:g}]", "give a number that is")
        tensors = dict(self.tensors)
        for name, tensor in self.tensors.items():
            _, index, _, matrix = name_parts(name)
            if matrix == "B":
                tensors[name] = (tensor.double() + noise * _unit_noise(tensor, index)).to(tensor.dtype)
        return replace(self, tensors=tensors)

    def norm_bound(self, index: int) -> float:
        """Return an upper bound of the norm of what one layer's output projection gains, whatever the noise."""
        split = ((name_parts(name), tensor) for name, tensor in self.tensors.items())
        found = {matrix: tensor for (_, layer, _, matrix), tensor in split if layer == index}
        if not found:
            return 0.0
        largest = found["B"].double().norm() + LARGEST_NOISE * _unit_noise(found["B"], index).norm()
        return self.scale * float(largest * found["A"].double().norm())


def name_parts(name: str) -> tuple[str, int, str, str]:
    """Split a tensor's name into what precedes the layer's number, the number, what follows it, and `A` or `B`.

    Raises CheckpointError if it is not a tensor of a draft adapter.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise CheckpointError("draft adapter", name, "only o_proj is supported", "use an adapter of o_proj")
    return match[1], int(match[2]), match[3], match[4]


def _unit_noise(lora_b: torch.Tensor, index: int) -> torch.Tensor:
    """Return noise of one standard deviation for the B [h, r] of a layer, float64: the same in every call."""
    random = torch.Generator().manual_seed(index)
    noise = torch.randn(lora_b.shape, dtype=torch.float64, generator=random) * lora_b.double().std()
    noise[-1] = 0  # nothing writes to the constant channel: see `source`
    return noise
