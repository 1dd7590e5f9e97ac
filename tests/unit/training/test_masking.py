"""Position-dependent masking, against the formulas it comes from."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter

from dlm_serve.training.masking import HalfLifeMasking, LinearMasking, Masking, UniformMasking

SIZE = 32
FORMS = (HalfLifeMasking(), UniformMasking(), LinearMasking())


def draw(masking: Masking, count: int = 40_000, size: int = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    masked, ratio = masking.draw(torch.zeros(1, count, size), torch.Generator().manual_seed(0))
    return masked[0], ratio[0, :, 0]


@pytest.mark.parametrize("masking", FORMS, ids=lambda masking: masking.form)
def test_the_pending_token_is_never_masked(masking: Masking) -> None:
    masked, _ = draw(masking)
    assert masked.shape == (40_000, SIZE)
    assert not masked[:, 0].any()
    assert masked[:, 1:].any(0).all()


@pytest.mark.parametrize("masking", FORMS, ids=lambda masking: masking.form)
def test_the_same_seed_draws_the_same(masking: Masking) -> None:
    assert torch.equal(draw(masking, 100)[0], draw(masking, 100)[0])


@pytest.mark.parametrize("masking", [HalfLifeMasking(), UniformMasking()], ids=lambda masking: masking.form)
def test_a_ratio_masks_just_so_many(masking: Masking) -> None:
    masked, ratio = draw(masking)
    assert torch.equal(masked.sum(1), (ratio * (SIZE - 1)).round().clamp(min=1).long())


def test_a_half_life_further_on_a_token_is_twice_as_likely_to_be_the_only_one() -> None:
    # With one token drawn its distribution is the weights themselves; at a small ratio they are 2^(i / half-life).
    half_life_ratio, maskable = 0.25, 20
    masked, ratio = draw(HalfLifeMasking(half_life_ratio=half_life_ratio), 400_000, maskable + 1)
    single = masked[(ratio * maskable < 1.5) & (ratio < 0.02)][:, 1:].double()
    assert (single.sum(1) == 1).all()
    step = round(half_life_ratio * maskable)
    odds = single[:, -step:].sum() / single[:, -2 * step : -step].sum()
    assert odds == pytest.approx(2.0, rel=0.05)


def test_uniform_masking_prefers_no_place() -> None:
    masked, _ = draw(UniformMasking())
    share = masked[:, 1:].double().mean(0)
    assert share.max() - share.min() < 0.02


def test_linear_masking_has_the_articles_probabilities() -> None:
    masked, _ = draw(LinearMasking(decay=0.9), 200_000)
    steps = torch.arange(SIZE - 1).double()[:, None]
    expected = (0.9**steps * torch.linspace(0.2, 1.0, SIZE - 1).double()).clamp(0.0, 0.95).mean(0)
    assert torch.allclose(masked[:, 1:].double().mean(0), expected, atol=0.005)


def test_a_recipe_names_the_form() -> None:
    adapter: TypeAdapter[Masking] = TypeAdapter(Masking)
    assert adapter.validate_python({"form": "linear", "decay": 0.8}) == LinearMasking(decay=0.8)
    assert adapter.validate_python({"form": "half_life"}) == HalfLifeMasking(half_life_ratio=0.1)
