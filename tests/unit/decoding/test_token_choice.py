"""Which token is chosen, with what noise, and how sure the model is of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

import pytest
import torch
from dlm_kernels.sample_token.reference import gumbel_noise, kept_scores
from scipy.stats import chisquare, kstest

from dlm_serve.decoding import Nucleus, Phase, Prediction, RowOptions, Rows, Sampling, TokenChoice
from dlm_serve.decoding.token_choice import random_confidence

MASK, VOCAB_SIZE = 3, 12
CHOICE = TokenChoice(MASK)
FLOAT32_EPS = torch.finfo(torch.float32).eps
UINT32 = 0xFFFFFFFF

# One row of logits for all tests of distributions: the mask is the likeliest, some tokens are rare.
LOGITS = torch.tensor([1.0, 0.5, -0.3, 2.5, 0.0, 2.0, -1.0, 1.5, -2.0, 0.7, 1.1, -0.6])


def sampling_of(
    rows: int,
    temperature: float = 1.0,
    top_k: int = VOCAB_SIZE,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 1,
) -> Sampling:
    """The same sampling for all rows."""
    return Sampling(
        temperature=torch.full((rows,), temperature),
        top_k=torch.full((rows,), top_k, dtype=torch.int32),
        top_p=torch.full((rows,), top_p),
        min_p=torch.full((rows,), min_p),
        seed=torch.full((rows,), seed),
    )


def rows_of(sampling: Sampling, shuffled: Sequence[int] = ()) -> Rows:
    """Rows whose tokens are drawn so; the masks of some are filled in a random order."""
    options = [RowOptions(Phase.DENOISE, 1, is_shuffled=i in shuffled) for i in range(len(sampling.seed))]
    return Rows.of(options, 1).replace(**vars(sampling))


def sampled(logits: torch.Tensor, positions: torch.Tensor, sampling: Sampling) -> Prediction:
    """What the server predicts for `logits` [B, W, V] at `positions` [B, W]."""
    return CHOICE.predict(logits, positions, rows_of(sampling))


def random_logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- Greedy ---


def test_greedy_takes_the_best_token_but_the_mask() -> None:
    logits = random_logits(200, VOCAB_SIZE)
    logits[::3, MASK] = 50.0
    ids = CHOICE.sample(logits, torch.arange(200), sampling_of(200, top_k=1))
    wanted = [max((t for t in range(VOCAB_SIZE) if t != MASK), key=row.__getitem__) for row in logits.tolist()]
    assert ids.tolist() == wanted


def test_sampling_leaves_the_logits_as_they_are() -> None:
    logits = random_logits(4, VOCAB_SIZE)
    before = logits.clone()
    CHOICE.sample(logits, torch.arange(4), sampling_of(4, temperature=0.5, top_p=0.5))
    assert torch.equal(logits, before)


def test_greedy_rows_stay_greedy_beside_sampled_ones() -> None:
    """Whatever the other fields of the greedy rows say."""
    logits = random_logits(400, VOCAB_SIZE)
    mixed = sampling_of(400, temperature=5.0, top_p=0.9)
    mixed.top_k[::2] = 1
    ids = CHOICE.sample(logits, torch.arange(400), mixed)
    greedy = CHOICE.sample(logits, torch.arange(400), sampling_of(400, top_k=1))
    assert torch.equal(ids[::2], greedy[::2])
    assert not torch.equal(ids[1::2], greedy[1::2])


def test_low_precision_logits_are_compared_as_they_are() -> None:
    logits = random_logits(50, VOCAB_SIZE).bfloat16()
    positions, one = torch.arange(50), sampling_of(50, temperature=0.7)
    assert torch.equal(CHOICE.sample(logits, positions, one), CHOICE.sample(logits.float(), positions, one))


# --- Noise ---


def mix(x: int) -> int:
    """The finaliser in integers of any size: nothing may depend on how 64 bits overflow."""
    x = (x + 0x9E3779B9) & UINT32
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & UINT32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & UINT32
    return x ^ (x >> 16)


@pytest.mark.parametrize("seed", [0, 1, UINT32, 2**32, 2**62 + 12345, -1], ids=hex)
def test_noise_is_its_formula(seed: int) -> None:
    positions = [0, 1, 4095, 2**31 - 1]
    noise = gumbel_noise(torch.full((4,), seed), torch.tensor(positions), 7)
    for row, position in zip(noise.tolist(), positions, strict=True):
        row_bits = mix(mix(mix(seed & UINT32) ^ ((seed >> 32) & UINT32)) ^ position)
        uniform = [(mix(row_bits ^ (token * 0x9E3779B1 & UINT32)) + 0.5) / 2**32 for token in range(7)]
        wanted = [-math.log(-math.log1p(-u)) for u in uniform]
        # One rounding to float32 after float64 logarithms; -log(x) near x = 1 loses as much as it is close to 0.
        assert row == pytest.approx(wanted, rel=2 * FLOAT32_EPS, abs=2 * FLOAT32_EPS)


def test_noise_depends_on_seed_position_and_token_only() -> None:
    """Not on the row's place, its neighbours, the vocabulary's size or the dtype of the positions."""
    seeds, positions = torch.tensor([5, 5, 9, 2**40]), torch.tensor([0, 7, 7, 123])
    batch = gumbel_noise(seeds, positions, 50)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(gumbel_noise(seeds[order], positions[order], 50), batch[order])
    assert torch.equal(gumbel_noise(seeds, positions.int(), 50), batch)
    assert torch.equal(gumbel_noise(seeds, positions, 20), batch[:, :20])
    for row in range(4):
        assert torch.equal(gumbel_noise(seeds[row : row + 1], positions[row : row + 1], 50)[0], batch[row])


@pytest.mark.parametrize(
    ("seed", "position"),
    [(2, 0), (1, 1), (1 + 2**32, 0), (-1, 0), (0, 1)],
    ids=["low-bits", "position", "high-bits", "sign", "swapped"],
)
def test_noise_differs_where_seed_or_position_differ(seed: int, position: int) -> None:
    one = gumbel_noise(torch.tensor([1]), torch.tensor([0]), 100)
    other = gumbel_noise(torch.tensor([seed]), torch.tensor([position]), 100)
    assert (one != other).sum() >= 99


@pytest.mark.parametrize(
    ("seeds", "positions", "vocab_size"),
    [(1, 1, 100_000), (1, 100_000, 1), (100_000, 1, 1), (20, 50, 100)],
    ids=["over-tokens", "over-positions", "over-seeds", "over-all"],
)
def test_noise_is_standard_gumbel(seeds: int, positions: int, vocab_size: int) -> None:
    seed = torch.arange(seeds).repeat_interleave(positions)
    noise = gumbel_noise(seed, torch.arange(positions).repeat(seeds), vocab_size)
    assert kstest(noise.double().flatten().numpy(), "gumbel_r").pvalue > 0.01


@pytest.mark.parametrize("axis", ["seed", "position", "token"])
def test_neighbouring_noise_is_uncorrelated(axis: str) -> None:
    """The correlation of n independent pairs is normal with deviation 1 / sqrt(n)."""
    steps = torch.arange(50_001)
    zeros = torch.zeros_like(steps)
    noise = {
        "seed": lambda: gumbel_noise(steps, zeros, 1)[:, 0],
        "position": lambda: gumbel_noise(zeros, steps, 1)[:, 0],
        "token": lambda: gumbel_noise(zeros[:1], zeros[:1], 50_001)[0],
    }[axis]()
    correlation = torch.corrcoef(torch.stack([noise[1:], noise[:-1]]).double())[0, 1]
    assert abs(correlation) < 3 / math.sqrt(50_000)


# --- Distributions and filters ---


def kept_by_filters(probs: Sequence[float], top_k: int, top_p: float, min_p: float) -> set[int]:
    """Token ids inside all three sets: the k best; the fewest best that reach top_p; within min_p of the best."""
    ranked = sorted(range(len(probs)), key=lambda token: -probs[token])
    best_k = set(ranked[:top_k])
    nucleus, total = set[int](), 0.0
    for token in ranked:
        if total > top_p:
            break
        nucleus.add(token)
        total += probs[token]
    return {token for token in best_k & nucleus if probs[token] >= min_p * probs[ranked[0]]}


def distribution(logits: Sequence[float], temperature: float, top_k: int, top_p: float, min_p: float) -> list[float]:
    """What one row should sample from: no mask, then temperature, then the filters."""
    weights = [0.0 if token == MASK else math.exp(logit / temperature) for token, logit in enumerate(logits)]
    probs = [weight / sum(weights) for weight in weights]
    kept = kept_by_filters(probs, top_k, top_p, min_p)
    total = sum(probs[token] for token in kept)
    return [prob / total if token in kept else 0.0 for token, prob in enumerate(probs)]


SAMPLINGS = {
    "plain": (1.0, VOCAB_SIZE, 1.0, 0.0),
    "cold": (0.6, VOCAB_SIZE, 1.0, 0.0),
    "hot": (2.5, VOCAB_SIZE, 1.0, 0.0),
    "top-k": (1.0, 3, 1.0, 0.0),
    "top-p": (1.0, VOCAB_SIZE, 0.75, 0.0),
    "min-p": (1.0, VOCAB_SIZE, 1.0, 0.3),
    "hot-top-p": (1.8, VOCAB_SIZE, 0.5, 0.0),
    "all": (1.3, 6, 0.8, 0.25),
}


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("seed", [0, 2**35 + 1])
def test_samples_follow_the_distribution(name: str, seed: int) -> None:
    """One request over many positions; tokens outside the filters, and the mask, never occur.

    The rarest token of the table is expected more than five times, as the chi-square test asks.
    """
    temperature, top_k, top_p, min_p = SAMPLINGS[name]
    count = 20_000
    sampling = sampling_of(count, temperature, top_k, top_p, min_p, seed)
    ids = CHOICE.sample(LOGITS.expand(count, -1), torch.arange(count), sampling)
    found = torch.bincount(ids, minlength=VOCAB_SIZE).tolist()
    wanted = distribution(LOGITS.tolist(), temperature, top_k, top_p, min_p)
    possible = [token for token in range(VOCAB_SIZE) if wanted[token] > 0]
    assert sum(found[token] for token in possible) == count
    assert {token for token, times in enumerate(found) if times} == set(possible)
    assert chisquare([found[t] for t in possible], [count * wanted[t] for t in possible]).pvalue > 0.01


def test_samples_follow_the_distribution_over_seeds() -> None:
    """Many requests at one position: what a batch of unseeded requests does."""
    count = 20_000
    sampling = sampling_of(count)
    sampling.seed.copy_(torch.arange(count))
    ids = CHOICE.sample(LOGITS.expand(count, -1), torch.full((count,), 17), sampling)
    wanted = distribution(LOGITS.tolist(), 1.0, VOCAB_SIZE, 1.0, 0.0)
    found = torch.bincount(ids, minlength=VOCAB_SIZE).tolist()
    possible = [token for token in range(VOCAB_SIZE) if token != MASK]
    assert chisquare([found[t] for t in possible], [count * wanted[t] for t in possible]).pvalue > 0.01


def test_filters_are_those_of_each_row() -> None:
    """A batch of every sampling: each row takes its best noisy token among those its own filters keep."""
    rows = [SAMPLINGS[name] for name in SAMPLINGS] * 25
    logits = random_logits(len(rows), VOCAB_SIZE, seed=4) / 2
    temperature, top_k, top_p, min_p = (torch.tensor(column) for column in zip(*rows, strict=True))
    seeds, positions = torch.arange(len(rows)), torch.arange(len(rows)) * 31
    sampling = Sampling(temperature, top_k.int(), top_p, min_p, seeds)
    noise = gumbel_noise(seeds, positions, VOCAB_SIZE).tolist()
    ids = CHOICE.sample(logits, positions, sampling).tolist()
    for row, settings in enumerate(rows):
        probs = distribution(logits[row].tolist(), *settings)
        kept = [token for token in range(VOCAB_SIZE) if probs[token] > 0]
        assert ids[row] == max(kept, key=lambda token: math.log(probs[token]) + noise[row][token]), settings


@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_batch_samples_as_each_row_alone(name: str) -> None:
    logits, positions = random_logits(16, VOCAB_SIZE), torch.arange(16) * 7
    sampling = sampling_of(16, *SAMPLINGS[name])
    sampling.seed.copy_(torch.arange(16) % 5)
    batch = CHOICE.sample(logits, positions, sampling)
    alone = [
        CHOICE.sample(logits[r : r + 1], positions[r : r + 1], sampling.select(slice(r, r + 1))) for r in range(16)
    ]
    assert torch.equal(batch, torch.cat(alone))


def test_a_tiny_top_p_is_greedy() -> None:
    """The best token always stays."""
    logits, positions = random_logits(64, VOCAB_SIZE), torch.arange(64)
    tiny = CHOICE.sample(logits, positions, sampling_of(64, temperature=3.0, top_p=1e-6))
    assert torch.equal(tiny, CHOICE.sample(logits, positions, sampling_of(64, top_k=1)))


def test_settings_that_no_tensor_holds_are_cut() -> None:
    rows = Rows.of([RowOptions(Phase.DENOISE, 1, temperature=1e300, top_k=1 << 40)], 1)
    assert rows.temperature.tolist() == pytest.approx([1e30])
    assert rows.top_k.tolist() == [2**31 - 1]


# --- Predictions ---


def test_confidence_and_entropy_are_those_of_the_raw_distribution() -> None:
    """Before temperature and filters, with the mask in the denominator though it is never chosen."""
    logits = random_logits(3, 4, VOCAB_SIZE)
    logits[..., MASK] += 3.0
    positions = torch.arange(12).view(3, 4)
    prediction = sampled(logits, positions, sampling_of(3, temperature=0.3, top_p=0.8))
    log_probs = logits.double() - logits.double().logsumexp(-1, keepdim=True)
    confidence = log_probs.exp().gather(2, prediction.ids[..., None])[..., 0]
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    # A float32 logit of size m, less a sum over V terms, is off by (m + V) eps: so is a log-probability.
    off = float((logits.abs().max() + VOCAB_SIZE) * FLOAT32_EPS)
    assert not (prediction.ids == MASK).any()
    torch.testing.assert_close(prediction.confidence.double(), confidence, rtol=2 * off, atol=0)
    slack = off * float(log_probs.abs().max() + VOCAB_SIZE)
    torch.testing.assert_close(prediction.entropy.double(), entropy, rtol=0, atol=slack)


def test_entropy_of_certainty_is_zero() -> None:
    """Probabilities that underflow to 0 give no nan."""
    logits = torch.full((1, 1, VOCAB_SIZE), -1e4)
    logits[..., 5] = 1e4
    prediction = CHOICE.greedy(logits)
    assert (prediction.ids.item(), prediction.confidence.item(), prediction.entropy.item()) == (5, 1.0, 0.0)


def test_resampling_samples_every_position_with_its_rows_sampling() -> None:
    logits, positions = random_logits(3, 5, VOCAB_SIZE), torch.arange(15).view(3, 5) * 2
    rows = Sampling(
        temperature=torch.tensor([0.5, 1.0, 2.0]),
        top_k=torch.tensor([VOCAB_SIZE, 1, 4], dtype=torch.int32),
        top_p=torch.tensor([1.0, 1.0, 0.9]),
        min_p=torch.tensor([0.1, 0.0, 0.0]),
        seed=torch.tensor([1, 2, 3]),
    )
    ids = sampled(logits, positions, rows).ids
    for row in range(3):
        one = rows.select(slice(row, row + 1))
        for i in range(5):
            assert ids[row, i] == CHOICE.sample(logits[row, i : i + 1], positions[row, i : i + 1], one)


@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_draft_and_its_verification_choose_the_same_token(name: str) -> None:
    """The draft reads the logits of position p at column p, the verification at column p - 1."""
    width, committed = 6, 100
    by_target = random_logits(width + 1, VOCAB_SIZE)
    sampling, columns = sampling_of(1, *SAMPLINGS[name], seed=77), torch.arange(width)
    drafted = sampled(by_target[None, :width], committed + columns[None], sampling).ids[0]
    verified = sampled(by_target[None, 1:], committed + columns[None] + 1, sampling).ids[0]
    assert torch.equal(drafted[1:], verified[:-1])


# --- BD3-LM's nucleus and its order of masks ---


@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.7, 0.9, 0.999, 1.0])
def test_a_nucleus_within_p(top_p: float) -> None:
    """The best tokens whose probabilities together stay within p, at least one; all for 1; never the mask."""
    allowed = LOGITS.clone()
    allowed[MASK] = float("-inf")
    scores = kept_scores(allowed[None], sampling_of(1, top_p=top_p), Nucleus.WITHIN)
    kept = scores[0].isfinite().nonzero().flatten().tolist()
    allowed = allowed.double()
    probs = allowed.softmax(-1)
    wanted: list[int] = []
    total = 0.0
    for token in probs.argsort(descending=True).tolist()[: VOCAB_SIZE - 1]:
        total += probs[token].item()
        if wanted and total > top_p and top_p < 1:
            break
        wanted.append(token)
    assert kept == sorted(wanted)


def test_random_confidences_put_masks_in_any_order_alike() -> None:
    """So that the largest among those that are left is each of them with equal chance."""
    seeds = torch.arange(24000)
    order = random_confidence(seeds, torch.tensor([[7, 8, 9, 10]]).expand(len(seeds), -1)).argsort(1)
    counts = [int((order == torch.tensor(p)).all(1).sum()) for p in permutations(range(4))]
    assert chisquare(counts).pvalue > 1e-3


def test_random_confidences_depend_on_seed_and_position_only() -> None:
    seeds, positions = torch.tensor([3, 4]), torch.tensor([[5, 6], [6, 7]])
    both = random_confidence(seeds, positions)
    assert torch.equal(both[1:], random_confidence(seeds[1:], positions[1:]))
    assert len(set(both.flatten().tolist())) == 4


# --- Which rows are left to chance ---


def test_chance_touches_drawn_rows_alone() -> None:
    """Sampled rows change ids and confidences, shuffled ones confidences, all others nothing."""
    logits, positions = random_logits(4, 5, VOCAB_SIZE), torch.arange(20).view(4, 5)
    sampling = sampling_of(4, temperature=3.0, seed=5)
    sampling.top_k[[0, 1, 3]] = 1
    greedy = CHOICE.greedy(logits)
    prediction = TokenChoice(MASK, may_shuffle=True).predict(logits, positions, rows_of(sampling, shuffled=[1]))
    assert (prediction.ids != greedy.ids).any(1).tolist() == [False, False, True, False]
    assert (prediction.confidence != greedy.confidence).any(1).tolist() == [False, True, True, False]
    assert torch.equal(prediction.entropy, greedy.entropy)
    assert torch.equal(prediction.confidence[1:2], random_confidence(sampling.seed[1:2], positions[1:2]))
