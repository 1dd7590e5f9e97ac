"""Token confidence: the reference against plain arithmetic, the Triton kernels against the reference."""

from __future__ import annotations

import math

import pytest
import torch
from dlm_kernels.token_confidence import reference
from dlm_kernels.token_confidence import triton as kernels

INF = float("inf")


@pytest.mark.parametrize(
    ("row", "exclude_id", "exclude_from_denominator", "expected"),
    [
        ([0.0, math.log(3)], -1, False, (1, 3 / 4, math.log(4) - 0.75 * math.log(3))),
        ([0.0, math.log(3)], 1, False, (0, 1 / 4, math.log(4) - 0.75 * math.log(3))),
        ([0.0, math.log(3)], 1, True, (0, 1.0, 0.0)),
        ([2.0, 2.0, 2.0, 2.0], 0, False, (1, 1 / 4, math.log(4))),
        ([2.0, 2.0, 2.0, 2.0], 0, True, (1, 1 / 3, math.log(3))),
        ([1e4, -1e4], -1, False, (0, 1.0, 0.0)),
        ([-INF, 1.0, -INF, 1.0], -1, False, (1, 1 / 2, math.log(2))),
    ],
    ids=["plain", "excluded", "dropped", "tie", "tie, dropped", "certain", "-inf"],
)
@pytest.mark.parametrize("implementation", [reference.token_confidence, kernels.token_confidence])
def test_known_rows(
    implementation: object,
    row: list[float],
    exclude_id: int,
    exclude_from_denominator: bool,
    expected: tuple[int, float, float],
    device: torch.device,
) -> None:
    assert callable(implementation)
    logits = torch.tensor([row], device=device)
    ids, confidence, entropy = implementation(logits, exclude_id, exclude_from_denominator)
    assert ids.item() == expected[0]
    assert confidence.item() == pytest.approx(expected[1], rel=1e-6)
    assert entropy.item() == pytest.approx(expected[2], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocab_size", [1, 7, 320, 8192, 20000])
@pytest.mark.parametrize("exclude_from_denominator", [False, True])
def test_kernels_equal_reference(
    dtype: torch.dtype, vocab_size: int, exclude_from_denominator: bool, device: torch.device
) -> None:
    """Same ids; as far from the float64 result as float32 sums over the row may be, whatever the logits' type."""
    generator = torch.Generator().manual_seed(vocab_size)
    padded = (torch.randn(5, vocab_size + 3, generator=generator) * 4).to(dtype).to(device)
    logits = padded[:, :vocab_size]  # rows lie apart, as they do behind a padded vocabulary
    exclude_id = int(logits[0].argmax()) if vocab_size > 1 else -1
    log_probs = logits.double()
    if exclude_from_denominator and exclude_id >= 0:
        log_probs[:, exclude_id] = -INF
    log_probs = log_probs.log_softmax(-1)
    own_ids, *_ = reference.token_confidence(logits, exclude_id, exclude_from_denominator)
    ids, confidence, entropy = kernels.token_confidence(logits, exclude_id, exclude_from_denominator)
    assert torch.equal(ids, own_ids)
    # A pairwise sum of n terms is off by log2(n) roundings, the exponential by its argument's.
    bound = torch.finfo(torch.float32).eps * (math.log2(vocab_size + 1) + float(logits.abs().max()) + 4)
    exact = log_probs.gather(1, ids[:, None]).squeeze(1).exp()
    assert ((confidence - exact).abs() <= bound * exact).all()
    exact_entropy = torch.special.entr(log_probs.exp()).sum(-1)
    assert ((entropy - exact_entropy).abs() <= bound * (1 + exact_entropy)).all()


def test_stretches_of_nothing_but_minus_infinity(device: torch.device) -> None:
    """As a mask over the vocabulary leaves them: the whole mass is where the others are."""
    logits = torch.full((2, 3 * kernels.STRETCH), -INF, device=device)
    logits[0, 5], logits[1, -1] = 2.0, -3.0
    for dropped in (False, True):
        ids, confidence, entropy = kernels.token_confidence(logits, 7, dropped)
        assert ids.tolist() == [5, 3 * kernels.STRETCH - 1]
        assert confidence.tolist() == [1.0, 1.0]
        assert entropy.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_rows_must_be_contiguous() -> None:
    with pytest.raises(ValueError, match="rows must be contiguous"):
        kernels.token_confidence(torch.zeros(4, 3).T, 0, False)
