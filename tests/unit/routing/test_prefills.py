"""What prefills take, learned from those that run."""

from __future__ import annotations

import numpy as np
import pytest

from dlm_serve.routing.prefills import Interruptions, PrefillModel, PrefillShape


@pytest.mark.parametrize("ms_per_token", [0.0, 0.05, 0.3])
def test_what_a_prefill_takes_apart_from_its_tokens(ms_per_token: float) -> None:
    random, model = np.random.default_rng(0), PrefillModel()
    for num_tokens in random.integers(1, 400, 200).tolist():
        model.observe(PrefillShape(1, num_tokens), (12 + ms_per_token * num_tokens) * random.uniform(0.95, 1.05))
    assert model.interruptions(0, 0).ms == pytest.approx(12, rel=0.05)


def test_prompts_of_one_length_do_not_say_what_a_prefill_takes_apart_from_them() -> None:
    model = PrefillModel()
    for _ in range(200):
        model.observe(PrefillShape(1, 8000), 400.0)
    assert 0 <= model.interruptions(0, 0).ms < 20


def test_how_often_requests_come() -> None:
    """An answer of 50 tokens for each; once answers are longer, that is learned."""
    model = PrefillModel()
    for length in (50, 200):
        for _ in range(1000):
            model.observe(PrefillShape(2, 60), 15.0)
            found = model.interruptions(8, 2 * length)
        assert found.requests_per_token == pytest.approx(1 / length, rel=0.02)


def test_there_is_one_prefill_behind_a_step_or_none() -> None:
    found = Interruptions(ms=10.0, requests_per_token=0.01).ms_per_step(np.array([0.0, 1.0, 100.0, 1e6]))
    np.testing.assert_allclose(found, [0, 0.0995, 6.321, 10], atol=1e-3)


def test_before_any_prefill_nothing_is_said() -> None:
    assert PrefillModel().interruptions(8, 80).requests_per_token == 0
