"""What prefills take, learned from those that run."""

from __future__ import annotations

import numpy as np
import pytest

from dlm_serve.routing.prefills import Interruptions, PrefillInterval, PrefillModel, PrefillShape


@pytest.mark.parametrize("ms_per_token", [0.0, 0.05, 0.3])
def test_what_a_prefill_takes_apart_from_its_tokens(ms_per_token: float) -> None:
    random, model = np.random.default_rng(0), PrefillModel()
    for num_tokens in random.integers(1, 400, 200).tolist():
        model.observe(PrefillShape(1, num_tokens), (12 + ms_per_token * num_tokens) * random.uniform(0.95, 1.05))
    assert model.interruptions(0, 0, 1).ms == pytest.approx(12, rel=0.05)


def test_prompts_of_one_length_do_not_say_what_a_prefill_takes_apart_from_them() -> None:
    model = PrefillModel()
    for _ in range(200):
        model.observe(PrefillShape(1, 8000), 400.0)
    assert 0 <= model.interruptions(0, 0, 1).ms < 20


def test_how_often_requests_come() -> None:
    """An answer of 50 tokens for each; once answers are longer, that is learned."""
    model = PrefillModel()
    for length in (50, 200):
        for _ in range(1000):
            model.observe(PrefillShape(2, 60), 15.0)
            found = model.interruptions(8, 2 * length, 1)
        assert found.requests_per_token == pytest.approx(1 / length, rel=0.02)


def test_there_is_one_prefill_behind_a_step_or_none() -> None:
    found = Interruptions(ms=10.0, requests_per_token=0.01).ms_per_step(np.array([0.0, 1.0, 100.0, 1e6]))
    np.testing.assert_allclose(found, [0, 0.0995, 6.321, 10], atol=1e-3)


@pytest.mark.parametrize("num_between", [1, 2, 5])
@pytest.mark.parametrize("per_step", [0.01, 0.5, 3.0])
def test_steps_between_prefills(per_step: float, num_between: int) -> None:
    """Against requests that come by chance, over many steps."""
    random = np.random.default_rng(1)
    num_prefills = num_waiting = num_held = 0
    for num_new in random.poisson(per_step, num_steps := 400_000):
        num_waiting, num_held = num_waiting + num_new, num_held - 1
        if num_waiting and num_held <= 0:
            num_prefills, num_waiting, num_held = num_prefills + 1, 0, num_between
    found = Interruptions(1.0, per_step / 10, num_between).ms_per_step(np.array([10.0]))
    assert found[0] == pytest.approx(num_prefills / num_steps, rel=0.05)


@pytest.mark.parametrize(("num_rows", "num_between"), [(3, 1), (4, 2)])
def test_few_requests_are_interrupted_at_once(num_rows: int, num_between: int) -> None:
    model = PrefillModel(PrefillInterval(num_steps=2, min_rows=4))
    assert model.interruptions(8, 80, num_rows).num_steps == num_between


@pytest.mark.parametrize(("num_tokens", "per_forward"), [(24, 8), (24, 4), (240, 8)])
def test_an_answer_takes_a_forward_more_than_it_needs(num_tokens: int, per_forward: int) -> None:
    found = Interruptions(requests_per_token=1 / num_tokens).tokens_per_forward(np.array([per_forward]))
    assert found[0] == pytest.approx(num_tokens / (num_tokens / per_forward + 1))


def test_before_any_prefill_nothing_is_said() -> None:
    assert PrefillModel().interruptions(8, 80, 1).requests_per_token == 0
