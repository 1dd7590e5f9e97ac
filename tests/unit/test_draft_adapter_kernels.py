"""The low-rank product of the draft adapter against float64: in PyTorch, and in Triton's interpreter or on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from dlm_kernels.draft_adapter import reference
from dlm_kernels.draft_adapter import triton as kernels

from tests.conftest import ON_GPU

# The interpreter computes with NumPy, which has no bfloat16.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if ON_GPU else [])]

AddLowRank = Callable[..., torch.Tensor]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_tokens", "num_outputs", "rank"), [(1, 48, 4), (5, 64, 16), (33, 72, 40), (70, 130, 128)])
@pytest.mark.parametrize("add_low_rank", [reference.add_low_rank, kernels.add_low_rank], ids=["torch", "triton"])
def test_adds_the_product_to_the_rows_that_draft(
    add_low_rank: AddLowRank, num_tokens: int, num_outputs: int, rank: int, dtype: torch.dtype, device: torch.device
) -> None:
    random = torch.Generator().manual_seed(num_tokens)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).to(device, dtype)

    both, lora_b = matrix(num_tokens, num_outputs + rank), matrix(num_outputs, rank)
    hidden, low_rank = both[:, :num_outputs], both[:, num_outputs:]  # as one product of stacked weights gives them
    token_on = torch.arange(num_tokens, device=device) % 3 == 0
    found = add_low_rank(hidden, low_rank, lora_b, token_on)

    assert torch.equal(found[~token_on], hidden[~token_on])
    product = low_rank.double() @ lora_b.T.double()
    expected = hidden.double() + product
    # Sums in float32 err by an eps for each term; the product may be rounded once, and the result once more.
    terms = hidden.abs().double() + low_rank.abs().double() @ lora_b.T.abs().double()
    rounded = torch.finfo(dtype).eps * (product.abs() + expected.abs())
    slack = torch.finfo(torch.float32).eps * (rank + 1) * terms + rounded
    assert ((found.double() - expected).abs() <= slack)[token_on].all()
    assert found.is_contiguous()
    add_low_rank(hidden, low_rank, lora_b, token_on, out=hidden)
    assert torch.equal(hidden, found)  # in place, in rows that lie apart
