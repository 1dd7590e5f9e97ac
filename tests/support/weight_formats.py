"""Weights in the formats of quantised checkpoints, rounded to nearest: for tests, and for benchmarks/quantised_nano.py.

Each format writes the weight [N, K] of a linear layer as the tensors that stand for it, reads it back, and describes
itself as `config.json` does. Nothing is calibrated: fixed scales of activations allow for `LARGEST_ACTIVATION`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

Tensors = dict[str, torch.Tensor]
"""What stands for a weight, by the last part of its name."""

LARGEST_ACTIVATION = 112.0
LARGEST_FP8 = 448.0
FP4_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


@dataclass(frozen=True)
class Format(ABC):
    """A way to store quantised weights."""

    group: tuple[int, int]
    """Rows and columns that share a scale; 0 is all of them."""

    error: ClassVar[float]
    """The largest error, as a part of the largest weight of a group."""

    @abstractmethod
    def quantize(self, weight: torch.Tensor) -> Tensors:
        """The tensors for a weight [N, K] in floats."""

    def quantize_fused(self, weight: torch.Tensor, fused: Sequence[torch.Tensor]) -> Tensors:
        """The same for one of the weights `fused`, which engines multiply by at once."""
        return self.quantize(weight)

    @abstractmethod
    def dequantize(self, tensors: Tensors) -> torch.Tensor:
        """The weight that they stand for, in float32."""

    @abstractmethod
    def config(self, left_out: Sequence[str]) -> dict[str, Any]:
        """`quantization_config`, with the modules `left_out`, and all inside of them, as they were."""

    def largest(self, weight: torch.Tensor) -> torch.Tensor:
        """The largest absolute value of each group, [N / rows, K / columns], never zero."""
        rows, columns = self._sizes(weight.shape)
        padding = (0, -weight.shape[1] % columns, 0, -weight.shape[0] % rows)
        padded = torch.nn.functional.pad(weight.float().abs(), padding)
        blocks = padded.reshape(len(padded) // rows, rows, -1, columns)
        return blocks.amax((1, 3)).clamp(min=1e-12)

    def spread(self, scale: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """A scale [N / rows, K / columns] for each element of a weight of this shape, in float32."""
        for axis, size in enumerate(self._sizes(shape)):
            scale = scale.float().repeat_interleave(size, dim=axis).narrow(axis, 0, shape[axis])
        return scale

    def _sizes(self, shape: Sequence[int]) -> list[int]:
        return [size or length for size, length in zip(self.group, shape, strict=True)]


# --- Eight bits ---


@dataclass(frozen=True)
class FP8(Format):
    """Eight bits of floating point, and scales in float32."""

    scale_name: str = "weight_scale"
    is_static: bool = False
    """Whether activations have a scale in the checkpoint."""

    error = 1.00001 / 28  # half of the step of 32 below 448, and float32

    def quantize(self, weight: torch.Tensor) -> Tensors:
        scale = self.largest(weight) / LARGEST_FP8
        tensors = {
            "weight": (weight.float() / self.spread(scale, weight.shape)).to(torch.float8_e4m3fn),
            self.scale_name: scale.squeeze() if self.group == (0, 0) else scale,
        }
        return tensors | ({"input_scale": torch.tensor(LARGEST_ACTIVATION / LARGEST_FP8)} if self.is_static else {})

    def dequantize(self, tensors: Tensors) -> torch.Tensor:
        weight, scale = tensors["weight"].float(), tensors[self.scale_name]
        return weight * self.spread(scale.reshape(scale.shape or (1, 1)), weight.shape)

    def config(self, left_out: Sequence[str]) -> dict[str, Any]:
        """As Transformers, and after it SGLang, writes it."""
        return {
            "quant_method": "fp8",
            "activation_scheme": "static" if self.is_static else "dynamic",
            **({"weight_block_size": list(self.group)} if all(self.group) else {}),
            "ignored_layers": list(left_out),
        }


class CompressedFP8(FP8):
    """The same under the names of compressed-tensors, with a scale for each row and activations scaled by token."""

    def config(self, left_out: Sequence[str]) -> dict[str, Any]:
        fp8 = {"num_bits": 8, "type": "float", "symmetric": True}
        weights = {**fp8, "strategy": "channel", "dynamic": False}
        return compressed("float-quantized", weights, {**fp8, "strategy": "token", "dynamic": True}, left_out)


class ModelOptFP8(FP8):
    """The same under the names of ModelOpt, which always fixes the scale of activations."""

    def config(self, left_out: Sequence[str]) -> dict[str, Any]:
        return {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": [f"{module}*" for module in left_out]}


def compressed(
    form: str, weights: dict[str, Any], activations: dict[str, Any] | None, left_out: Sequence[str]
) -> dict[str, Any]:
    """What compressed-tensors writes, with patterns for what is left out."""
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": activations}},
        "ignore": [f"re:{re.escape(module)}.*" for module in left_out],
    }


# --- Four bits, integers ---


def pack(values: torch.Tensor, axis: int, order: Sequence[int]) -> torch.Tensor:
    """Values of 0 to 15, int32, eight along `axis` in each; its bits 4i to 4i + 3 hold the order[i]-th of them."""
    last = values.movedim(axis, -1).int()
    packed = torch.zeros_like(last[..., ::8])
    for i, place in enumerate(order):
        packed |= last[..., place::8] << 4 * i
    return packed.movedim(-1, axis).contiguous()


def unpack(words: torch.Tensor, axis: int, order: Sequence[int]) -> torch.Tensor:
    """The values that `pack` was given."""
    values = torch.stack([words.movedim(axis, -1) >> 4 * i & 15 for i in range(8)], dim=-1)
    return values[..., torch.tensor(order).argsort()].flatten(-2).movedim(-1, axis)


class Int4(Format):
    """Integers of -8 to 7 in words of 32 bits, and a scale for a group of each row."""

    error = 1 / 13  # half of a step of 1/7, and what rounding the scale adds
    order: ClassVar[Sequence[int]] = range(8)

    def integers(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight in steps of its scales, and the scales [N, K / group] in bfloat16."""
        scale = (self.largest(weight) / 7).bfloat16()
        return (weight.float() / self.spread(scale, weight.shape)).round().clamp(-8, 7).int(), scale

    def floats(self, integers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """What they stand for."""
        return integers * self.spread(scale, integers.shape)


class PackQuantized(Int4):
    """compressed-tensors' W4A16: words along a row."""

    def quantize(self, weight: torch.Tensor) -> Tensors:
        integers, scale = self.integers(weight)
        packed = pack(integers + 8, 1, self.order)
        return {"weight_packed": packed, "weight_scale": scale, "weight_shape": torch.tensor(weight.shape)}

    def dequantize(self, tensors: Tensors) -> torch.Tensor:
        return self.floats(unpack(tensors["weight_packed"], 1, self.order) - 8, tensors["weight_scale"])

    def config(self, left_out: Sequence[str]) -> dict[str, Any]:
        weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": self.group[1]}
        return compressed("pack-quantized", {**weights, "symmetric": True, "dynamic": False}, None, left_out)


class GPTQ(Int4):
    """GPTQ's layout: inputs before outputs, words along the inputs, zeros stored less one."""

    def quantize(self, weight: torch.Tensor) -> Tensors:
        integers, scale = self.integers(weight)
        return {
            "qweight": pack((integers + 8).T, 0, self.order),
            "qzeros": pack(torch.full_like(scale.T, 8 - 1), 1, self.order),
            "scales": scale.T.contiguous(),
            "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // self.group[1],
        }

    def dequantize(self, tensors: Tensors) -> torch.Tensor:
        return self.floats(unpack(tensors["qweight"], 0, self.order).T - 8, tensors["scales"].T)

    def config(self, left_out: Sequence[str]) -> dict[str, Any]:
        fixed = {"bits": 4, "group_size": self.group[1], "desc_act": False, "sym": True, "lm_head": False}
        patterns: dict[str, Any] = {f"-:{re.escape(module)}.*": {} for module in left_out}
        return {"quant_method": "gptq", **fixed, "dynamic": patterns}


class AWQ(Int4):
    """AWQ's layout: inputs before outputs, words along the outputs in an order of their own."""

    order = (0, 2, 4, 6, 1, 3, 5, 7)

    def quantize(self, weight: torch.Tensor) -> Tensors:
        integers, scale = self.integers(weight)
        return {
            "qweight": pack((integers + 8).T, 1, self.order),
            "qzeros": pack(torch.full_like(scale.T, 8), 1, self.order),
            "scales": scale.T.contiguous(),
        }

    def dequantize(self, tensors: Tensors) -> torch.Tensor:
        return self.floats(unpack(tensors["qweight"], 1, self.order).T - 8, tensors["scales"].T)

    def config(self, left_out: Sequence[str]) -> dict[str, Any]:
        fixed = {"bits": 4, "group_size": self.group[1], "zero_point": True, "version": "gemm"}
        return {"quant_method": "awq", **fixed, "modules_to_not_convert": list(left_out)}


# --- Four bits, floating point ---


class NVFP4(Format):
    """Two values in a byte, a scale in FP8 for a group of each row, and one in float32 for those scales.

    Under the names of compressed-tensors, which stores what is divided by; activations are of the same kind. Weights
    that are multiplied by at once share the scale of scales.
    """

    error = 1 / 5  # half of the step from 4 to 6, and what rounding the scale adds

    def parts(
        self, weight: torch.Tensor, fused: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Bytes [N, K / 2], scales [N, K / group], and the scale of scales."""
        largest = torch.stack([each.float().abs().max() for each in fused]).max()
        overall = largest.clamp(min=1e-12) / (FP4_VALUES[-1] * LARGEST_FP8)
        scale = (self.largest(weight) / FP4_VALUES[-1] / overall).to(torch.float8_e4m3fn)
        values = weight.float() / self.spread(scale, weight.shape).clamp(min=1e-12) / overall
        codes = (values.abs()[..., None] - FP4_VALUES).abs().argmin(-1) + 8 * (values < 0)
        return (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8), scale, overall

    def floats(self, packed: torch.Tensor, scale: torch.Tensor, overall: torch.Tensor) -> torch.Tensor:
        """What they stand for."""
        codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1).long()
        values = FP4_VALUES[codes & 7] * (1 - 2 * (codes >> 3))
        return values * self.spread(scale, values.shape) * overall

    def quantize(self, weight: torch.Tensor) -> Tensors:
        return self.quantize_fused(weight, [weight])

    def quantize_fused(self, weight: torch.Tensor, fused: Sequence[torch.Tensor]) -> Tensors:
        packed, scale, overall = self.parts(weight, fused)
        activations = FP4_VALUES[-1] * LARGEST_FP8 / LARGEST_ACTIVATION
        return {
            "weight_packed": packed,
            "weight_scale": scale,
            "weight_global_scale": (1 / overall).reshape(1),
            "input_global_scale": activations.reshape(1),
        }

    def dequantize(self, tensors: Tensors) -> torch.Tensor:
        return self.floats(tensors["weight_packed"], tensors["weight_scale"], 1 / tensors["weight_global_scale"])

    def config(self, left_out: Sequence[str]) -> dict[str, Any]:
        fp4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
        return compressed("nvfp4-pack-quantized", {**fp4, "dynamic": False}, {**fp4, "dynamic": "local"}, left_out)


class ModelOptNVFP4(NVFP4):
    """The same under the names of ModelOpt, which stores what is multiplied by."""

    def quantize_fused(self, weight: torch.Tensor, fused: Sequence[torch.Tensor]) -> Tensors:
        packed, scale, overall = self.parts(weight, fused)
        activations = LARGEST_ACTIVATION / (FP4_VALUES[-1] * LARGEST_FP8)
        return {"weight": packed, "weight_scale": scale, "weight_scale_2": overall, "input_scale": activations}

    def dequantize(self, tensors: Tensors) -> torch.Tensor:
        return self.floats(tensors["weight"], tensors["weight_scale"], tensors["weight_scale_2"])

    def config(self, left_out: Sequence[str]) -> dict[str, Any]:
        ignore = [f"{module}*" for module in left_out]
        return {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": self.group[1], "ignore": ignore}


FORMATS: dict[str, Format] = {
    "fp8": FP8((0, 0)),
    "fp8-static": FP8((0, 0), is_static=True),
    "fp8-block": FP8((128, 128), "weight_scale_inv"),
    "compressed-fp8": CompressedFP8((1, 0)),
    "compressed-w4a16": PackQuantized((1, 32)),
    "compressed-nvfp4": NVFP4((1, 16)),
    "gptq": GPTQ((1, 128)),
    "awq": AWQ((1, 128)),
    "modelopt-fp8": ModelOptFP8((0, 0), is_static=True),
    "modelopt-nvfp4": ModelOptNVFP4((1, 16)),
}
