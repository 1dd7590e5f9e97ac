"""BD3-LM's adaLN modulation as constants in the weights around it.

The model is conditioned on a noise level that is always zero (`time_conditioning` is false), so every
shift, scale and gate is a constant: shift and scale join the layer norm they follow, a gate the linear layer it
multiplies. What remains is a plain pre-norm transformer.
Reference: `DDiTBlock`, `DDitFinalLayer` and `TimestepEmbedder` of `modeling_bd3lm.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn.functional import linear, silu

Tensors = Mapping[str, torch.Tensor]

_EMBEDDING = "sigma_map.mlp"
_MODULATION = "adaLN_modulation"


def fold_modulation(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return the `tensors` of a checkpoint, named as in it behind `backbone.`, without what only modulates.

    Layer norms gain a bias. All is computed in float32, the type the release has.
    """
    condition = silu(_embedded_zero(tensors))
    folded = {name: tensor for name, tensor in tensors.items() if _EMBEDDING not in name and _MODULATION not in name}
    for name in tensors:
        layer, is_modulation, _ = name.partition(f".{_MODULATION}.weight")
        if not is_modulation:
            continue
        constants = _linear(tensors, f"{layer}.{_MODULATION}", condition)
        if layer == "output_layer":
            shift, scale = constants.chunk(2)
            _modulate(folded, f"{layer}.norm_final", shift, scale)
            continue
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = constants.chunk(6)
        _modulate(folded, f"{layer}.norm1", shift, scale)
        _gate(folded, f"{layer}.attn_out", gate)
        _modulate(folded, f"{layer}.norm2", mlp_shift, mlp_scale)
        _gate(folded, f"{layer}.mlp.2", mlp_gate)
    return folded


def _embedded_zero(tensors: Tensors) -> torch.Tensor:
    """Return the embedding [cond_dim] of noise level zero, whose sinusoids are ones (cosines) and zeros (sines)."""
    weight = tensors[f"{_EMBEDDING}.0.weight"].float()
    # Made from a weight: while SGLang loads, the default type is the model's.
    sinusoids = weight.new_zeros(weight.shape[1])
    sinusoids[: weight.shape[1] // 2] = 1
    return _linear(tensors, f"{_EMBEDDING}.2", silu(_linear(tensors, f"{_EMBEDDING}.0", sinusoids)))


def _linear(tensors: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return linear(x, tensors[f"{name}.weight"].float(), tensors[f"{name}.bias"].float())


def _modulate(folded: dict[str, torch.Tensor], norm: str, shift: torch.Tensor, scale: torch.Tensor) -> None:
    """Return norm(x) * (1 + scale) + shift, the norm having a weight alone."""
    folded[f"{norm}.weight"] = folded[f"{norm}.weight"].float() * (1 + scale)
    folded[f"{norm}.bias"] = shift


def _gate(folded: dict[str, torch.Tensor], layer: str, gate: torch.Tensor) -> None:
    """Return the layer's outputs [D_out] multiplied with `gate`."""
    folded[f"{layer}.weight"] = folded[f"{layer}.weight"].float() * gate[:, None]
    if f"{layer}.bias" in folded:
        folded[f"{layer}.bias"] = folded[f"{layer}.bias"].float() * gate
