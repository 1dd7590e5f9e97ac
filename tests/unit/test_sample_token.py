"""Token choice: the reference against plain arithmetic, the Triton kernels against the reference.

What drawn tokens are distributed like, and what their noise is, `decoding/test_token_choice.py` says of the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dlm_kernels.sample_token import Nucleus, Sampling, reference
from dlm_kernels.sample_token import triton as kernels

INF = float("inf")
WHOLE = 1 << 30
"""A top-k that keeps the whole vocabulary, as SGLang writes it."""

both = pytest.mark.parametrize("sample_token", [reference.sample_token, kernels.sample_token], ids=["torch", "triton"])
SampleToken = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]


def sampling_of(
    *rows: tuple[float, int, float, float], device: torch.device | None = None, first_seed: int = 2**40
) -> Sampling:
    """Rows of (temperature, top_k, top_p, min_p), each with a seed of its own."""
    temperature, top_k, top_p, min_p = (torch.tensor(column, device=device) for column in zip(*rows, strict=True))
    seed = torch.arange(len(rows), device=device) + first_seed
    return Sampling(temperature.float(), top_k.int(), top_p.float(), min_p.float(), seed)


# --- Greedy ---


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
@both
def test_known_rows(
    sample_token: SampleToken,
    row: list[float],
    exclude_id: int,
    exclude_from_denominator: bool,
    expected: tuple[int, float, float],
    device: torch.device,
) -> None:
    logits = torch.tensor([row], device=device)
    ids, confidence, entropy, second_ids = sample_token(
        logits, exclude_id=exclude_id, exclude_from_denominator=exclude_from_denominator
    )
    assert torch.equal(second_ids, ids), "asked for nothing else"
    assert ids.item() == expected[0]
    assert confidence.item() == pytest.approx(expected[1], rel=1e-6)
    assert entropy.item() == pytest.approx(expected[2], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [
        (1, torch.float32),
        (7, torch.float16),
        (320, torch.bfloat16),
        (8192, torch.float32),
        (20000, torch.float32),
        (20000, torch.float16),
        (20000, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("exclude_from_denominator", [False, True])
def test_greedy_kernels_equal_the_reference(
    vocab_size: int, dtype: torch.dtype, exclude_from_denominator: bool, device: torch.device
) -> None:
    """Same ids; as far from the float64 result as float32 sums over the row may be, whatever the logits' type."""
    generator = torch.Generator().manual_seed(vocab_size)
    padded = (torch.randn(5, vocab_size + 3, generator=generator) * 4).to(dtype).to(device)
    logits = padded[:, :vocab_size]  # rows lie apart, as they do behind a padded vocabulary
    exclude_id = int(logits[0].argmax()) if vocab_size > 1 else -1
    rules: dict[str, Any] = {"exclude_id": exclude_id, "exclude_from_denominator": exclude_from_denominator}
    ids, confidence, entropy, second_ids = kernels.sample_token(logits, with_second=True, **rules)
    assert torch.equal(ids, reference.sample_token(logits, **rules)[0])
    assert torch.equal(second_ids, reference.sample_token(logits, with_second=True, **rules)[3])
    assert torch.equal(kernels.sample_token(logits, **rules)[0], ids)
    assert_probabilities(logits, ids, confidence, entropy, exclude_id if exclude_from_denominator else -1)


def assert_probabilities(
    logits: torch.Tensor, ids: torch.Tensor, confidence: torch.Tensor, entropy: torch.Tensor, dropped_id: int
) -> None:
    """They are as far from the float64 result as float32 sums over the row may be."""
    log_probs = logits.double()
    if dropped_id >= 0:
        log_probs[:, dropped_id] = -INF
    log_probs = log_probs.log_softmax(-1)
    # A pairwise sum of n terms is off by log2(n) roundings, the exponential by its argument's.
    bound = torch.finfo(torch.float32).eps * (math.log2(logits.shape[1] + 1) + float(logits.abs().max()) + 4)
    log_prob = log_probs.gather(1, ids[:, None]).squeeze(1)
    exact = log_prob.exp()
    assert ((confidence - exact).abs() <= (bound + torch.finfo(torch.float32).eps * log_prob.abs()) * exact).all()
    exact_entropy = torch.special.entr(log_probs.exp()).sum(-1)
    assert ((entropy - exact_entropy).abs() <= bound * (1 + exact_entropy)).all()


def test_stretches_of_nothing_but_minus_infinity(device: torch.device) -> None:
    """As a mask over the vocabulary leaves them: the whole mass is where the others are."""
    logits = torch.full((2, 3 * kernels.STRETCH), -INF, device=device)
    logits[0, 5], logits[1, -1] = 2.0, -3.0
    for dropped in (False, True):
        ids, confidence, entropy, _ = kernels.sample_token(logits, exclude_id=7, exclude_from_denominator=dropped)
        assert ids.tolist() == [5, 3 * kernels.STRETCH - 1]
        assert confidence.tolist() == [1.0, 1.0]
        assert entropy.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([0.0, 3.0, 2.0, 9.0, 1.0], [1, 2]),
        ([0.0, 2.0, 2.0, 9.0, 2.0], [1, 2]),
        ([2.0, 0.0, 1.0, 9.0, 1.0], [0, 2]),
        ([-INF, 2.0, -INF, 9.0, -INF], [1, 1]),
        ([-INF, -INF, -INF, 9.0, 1.0], [4, 4]),
        ([-INF, -INF, 0.0, 9.0, 1.0], [4, 2]),
    ],
    ids=["plain", "all tie", "seconds tie", "no second", "no second, last", "other -inf"],
)
@pytest.mark.parametrize("apart", [1, 3000], ids=["together", "in stretches of their own"])
@both
def test_the_second_most_likely(
    sample_token: SampleToken, row: list[float], expected: list[int], apart: int, device: torch.device
) -> None:
    """Where there is none it is the first again; token 3, which would be the first, is excluded."""
    logits = torch.full((1, 5 * apart), -INF, device=device)
    logits[0, ::apart] = torch.tensor(row)
    ids, *_, second_ids = sample_token(logits, exclude_id=3 * apart, with_second=True)
    assert [ids.item(), second_ids.item()] == [apart * token for token in expected]


@both
def test_the_second_is_drawn_among_the_kept(sample_token: SampleToken, device: torch.device) -> None:
    """Greedy, from all tokens, from those kept, and from one that is kept alone: what the noisy scores say."""
    settings = [(1.0, 1, 1.0, 0.0), (1.0, WHOLE, 1.0, 0.0), (1.0, 2, 1.0, 0.0), (1.0, WHOLE, 0.1, 0.0)] * 4
    sampling = sampling_of(*settings, device=device)
    logits = (torch.randn(16, 600, generator=torch.Generator().manual_seed(0)) * 3).to(device)
    logits[:, 7] = 20.0
    positions = torch.arange(16, device=device)
    found = sample_token(logits, positions, sampling, exclude_id=-1, with_second=True)
    scores = logits + reference.gumbel_noise(sampling.seed, positions, 600)
    scores[::4] = logits[::4]
    two_likeliest = logits >= logits.topk(2).values[:, 1:]
    scores[2::4] = scores[2::4].masked_fill(~two_likeliest[2::4], -INF)
    expected = scores.topk(2).indices
    expected[3::4] = 7
    assert torch.equal(torch.stack([found[0], found[3]], 1), expected)


def test_rows_must_be_contiguous() -> None:
    with pytest.raises(ValueError, match="rows must be contiguous"):
        kernels.sample_token(torch.zeros(4, 3).T, exclude_id=0)


# --- Drawn ---

SETTINGS = {
    "plain": (1.0, WHOLE, 1.0, 0.0),
    "cold": (0.6, WHOLE, 1.0, 0.0),
    "hot": (2.5, WHOLE, 1.0, 0.0),
    "top-k": (1.0, 3, 1.0, 0.0),
    "top-k 50": (0.7, 50, 1.0, 0.0),
    "top-p": (0.7, WHOLE, 0.9, 0.0),
    "min-p": (1.0, WHOLE, 1.0, 0.3),
    "hot top-p": (1.8, WHOLE, 0.5, 0.0),
    "all": (1.3, 20, 0.8, 0.05),
    "greedy": (0.7, 1, 0.9, 0.1),
    "as good as greedy": (1e-6, WHOLE, 0.9, 0.0),
    "as good as uniform": (1e6, WHOLE, 1.0, 0.0),
    "uniform of a few": (1e6, 5, 1.0, 0.0),
    "hotter than float32": (1e38, WHOLE, 0.5, 0.0),
    "nothing but the best": (2.0, WHOLE, 0.0, 0.0),
    "nothing below the best": (2.0, WHOLE, 1.0, 1.0),
    "the whole vocabulary": (1.0, 9000, 1.0, 0.0),
}


def assert_as_the_reference(
    logits: torch.Tensor, names: list[str], nucleus: Nucleus = Nucleus.REACHING, device: torch.device | None = None
) -> None:
    """Rows of `logits` are drawn as the reference draws them, as many for each of the settings `names`."""
    sampling = sampling_of(*[SETTINGS[name] for name in names], device=device)
    positions = torch.arange(len(logits), device=device) * 31
    rules: dict[str, Any] = {"exclude_id": 3, "nucleus": nucleus}
    ids, confidence, entropy, second_ids = kernels.sample_token(logits, positions, sampling, with_second=True, **rules)
    expected, *_, expected_second = reference.sample_token(logits, positions, sampling, with_second=True, **rules)
    same = (ids == expected) & (second_ids == expected_second)
    row_names = [name for name in names for _ in range(len(logits) // len(names))]
    assert [name for name, is_same in zip(row_names, same.tolist(), strict=True) if not is_same] == []
    assert torch.equal(kernels.sample_token(logits, positions, sampling, **rules)[0], ids)
    assert_probabilities(logits, ids, confidence, entropy, dropped_id=-1)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(7, torch.float32), (5000, torch.bfloat16)])
def test_drawn_kernels_equal_the_reference(vocab_size: int, dtype: torch.dtype, device: torch.device) -> None:
    """Every setting beside each other. In bfloat16 logits have many ties."""
    generator = torch.Generator().manual_seed(vocab_size)
    logits = (torch.randn(len(SETTINGS), vocab_size, generator=generator) * 3).to(dtype).to(device)
    assert_as_the_reference(logits, list(SETTINGS), device=device)


@pytest.mark.parametrize("nucleus", Nucleus)
def test_top_p_of_several_positions_equals_the_reference(nucleus: Nucleus, device: torch.device) -> None:
    """Each setting with a top-p for two positions."""
    names = [name for name, (_, _, top_p, _) in SETTINGS.items() if top_p < 1]
    logits = torch.randn(2 * len(names), 320, generator=torch.Generator().manual_seed(320)) * 3
    assert_as_the_reference(logits.bfloat16().to(device), names, nucleus, device)


def test_of_equal_scores_the_lowest_id_is_drawn(device: torch.device) -> None:
    """Scores so large that noise is rounded to a few values beside them: several tokens share the highest."""
    logits, temperature = torch.full((4, 600), 2.0, device=device), 1e-7
    sampling = sampling_of(*[(temperature, WHOLE, 1.0, 0.0)] * 4, device=device)
    positions = torch.arange(4, device=device)
    scores = logits / temperature + reference.gumbel_noise(sampling.seed, positions, 600)
    shared = scores == scores.max(-1, keepdim=True).values
    assert (shared.sum(-1) > 1).any()
    ids, *_, second_ids = kernels.sample_token(logits, positions, sampling, exclude_id=-1, with_second=True)
    assert torch.equal(
        torch.stack([ids, second_ids], 1), scores.sort(dim=-1, descending=True, stable=True).indices[:, :2]
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rows_that_are_not_numbers_end(device: torch.device) -> None:
    """As a poisoned buffer may leave them: some token is drawn, whether none is a number or one is not."""
    settings = [SETTINGS["all"]] * 2 + [SETTINGS["top-p"]] * 2
    logits = torch.randn(4, 70, generator=torch.Generator().manual_seed(0)).to(device)
    logits[::2], logits[1::2, 5] = math.nan, math.nan
    positions = torch.arange(4, device=device)
    sampling = sampling_of(*settings, device=device)
    ids, *_, second_ids = kernels.sample_token(logits, positions, sampling, exclude_id=3, with_second=True)
    assert ((ids >= 0) & (ids < 70)).all()
    assert ((second_ids >= 0) & (second_ids < 70)).all()


@both
def test_one_token_that_is_left_is_taken(sample_token: SampleToken, device: torch.device) -> None:
    logits = torch.full((len(SETTINGS), 600), -INF, device=device)
    logits[:, 599] = -7.0
    sampling = sampling_of(*SETTINGS.values(), device=device)
    positions = torch.arange(len(SETTINGS), device=device)
    ids, confidence, _, second_ids = sample_token(logits, positions, sampling, exclude_id=3, with_second=True)
    assert ids.tolist() == second_ids.tolist() == [599] * len(SETTINGS)
    assert confidence.tolist() == [1.0] * len(SETTINGS)


@pytest.mark.parametrize("nucleus", Nucleus)
@pytest.mark.parametrize(
    ("setting", "kept"),
    [((1.0, 2, 1.0, 0.0), {0, 1, 2}), ((1.0, WHOLE, 0.1, 0.0), {0}), ((1.0, WHOLE, 1.0, 0.3), {0, 1, 2})],
    ids=["top-k", "top-p", "min-p"],
)
def test_ties_are_kept_or_dropped_together(
    nucleus: Nucleus, setting: tuple[float, int, float, float], kept: set[int]
) -> None:
    """Tokens 1 and 2 are alike: whichever filter keeps one keeps the other."""
    logits = torch.tensor([[2.0, 1.0, 1.0, 0.0, -1.0]]).expand(60, -1).contiguous()
    sampling = sampling_of(*[setting] * 60)
    ids, *_ = reference.sample_token(logits, torch.arange(60), sampling, exclude_id=-1, nucleus=nucleus)
    assert set(ids.tolist()) == kept


def test_the_best_are_kept_whatever_p_is() -> None:
    logits = torch.zeros(60, 6)
    sampling = sampling_of(*[(1.0, WHOLE, 0.01, 0.0)] * 60)
    for nucleus in Nucleus:
        ids, *_ = reference.sample_token(logits, torch.arange(60), sampling, exclude_id=2, nucleus=nucleus)
        assert set(ids.tolist()) == {0, 1, 3, 4, 5}
