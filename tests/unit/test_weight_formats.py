"""Weights that are quantised for tests and benchmarks stand for the weights that they were made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from weight_formats import AWQ, FORMATS, pack, unpack

ROWS, COLUMNS = 320, 384
LEFT_OUT = ["encoder.layers.0.self_attn", "diffusion_head"]

each_format = pytest.mark.parametrize("name", FORMATS)


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    """Rows of different sizes, one of zeros."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, COLUMNS, generator=random) * torch.logspace(-2, 0, ROWS)[:, None]
    weight[7] = 0
    return weight.bfloat16()


@each_format
def test_what_is_read_back_is_as_near_as_the_format_allows(name: str, weight: torch.Tensor) -> None:
    form = FORMATS[name]
    found = form.dequantize(form.quantize(weight))
    largest = form.spread(form.largest(weight), weight.shape)
    error = ((found - weight.float()).abs() / largest).max().item()
    assert form.error / 2 < error <= form.error
    assert not found[7].any()


@each_format
def test_what_is_read_back_is_quantised_to_itself(name: str, weight: torch.Tensor) -> None:
    form = FORMATS[name]
    found = form.dequantize(form.quantize(weight))
    torch.testing.assert_close(form.dequantize(form.quantize(found)), found, rtol=2**-7, atol=0)


@pytest.mark.parametrize(
    ("name", "shared"), [("compressed-nvfp4", "weight_global_scale"), ("modelopt-nvfp4", "weight_scale_2")]
)
def test_weights_that_are_multiplied_by_at_once_share_their_last_scale(
    name: str, shared: str, weight: torch.Tensor
) -> None:
    form, fused = FORMATS[name], [weight[200:], weight[200:] / 3]
    first, second = (form.quantize_fused(each, fused) for each in fused)
    assert first[shared] == second[shared] != form.quantize(fused[1])[shared]
    largest = form.spread(form.largest(fused[1]), fused[1].shape)
    assert ((form.dequantize(second) - fused[1].float()).abs() / largest).max().item() <= form.error


@pytest.mark.parametrize("order", [range(8), AWQ.order], ids=["in order", "AWQ's"])
@pytest.mark.parametrize("axis", [0, 1])
def test_words(order: Any, axis: int) -> None:
    values = torch.randint(16, (16, 24), generator=torch.Generator().manual_seed(0))
    words = pack(values, axis, order)
    assert words.dtype is torch.int32
    assert words.shape[axis] * 8 == values.shape[axis]
    assert torch.equal(unpack(words, axis, order), values.int())


def test_words_of_compressed_tensors_are_read_by_its_library(weight: torch.Tensor) -> None:
    form = FORMATS["compressed-w4a16"]
    tensors = form.quantize(weight)
    integers = unpack_from_int32(tensors["weight_packed"], 4, torch.Size(tensors["weight_shape"].tolist()))
    theirs = integers.float() * form.spread(tensors["weight_scale"], weight.shape)
    assert torch.equal(theirs, form.dequantize(tensors))


def test_bytes_of_nvfp4_are_read_by_its_library(weight: torch.Tensor) -> None:
    form = FORMATS["compressed-nvfp4"]
    tensors = form.quantize(weight)
    values = unpack_fp4_from_uint8(tensors["weight_packed"], ROWS, COLUMNS, torch.float32)
    theirs = values * form.spread(tensors["weight_scale"], weight.shape) / tensors["weight_global_scale"]
    torch.testing.assert_close(theirs, form.dequantize(tensors))
