"""What blocks emit is compared with what was thought of them: as far as choices and requests really differ."""

from __future__ import annotations

import numpy as np
import pytest

from dlm_serve.routing.compared import ByChoice, ByRequest
from dlm_serve.routing.drafts import REQUEST_FADES

LONG, SHORT = range(len(REQUEST_FADES))


def learned(means: list[float], num_blocks: int = 40) -> ByRequest:
    """Requests whose blocks accept so many drafts on average, where all were thought to accept 4."""
    by_request, random = ByRequest(len(means) + 1), np.random.default_rng(1)
    slots = np.arange(len(means))
    for _ in range(num_blocks):
        by_request.learn(slots, random.geometric(1 / (1 + np.array(means))) - 1, np.full(len(means), 4.0))
    return by_request


def test_a_request_that_has_shown_nothing_is_as_is_thought() -> None:
    by_request = learned([1.0, 16.0])
    assert by_request.factor(np.array([2]), LONG).tolist() == [1.0]
    by_request.forget([0])
    assert by_request.factor(np.array([0]), LONG).tolist() == [1.0]


def test_where_requests_differ_their_own_blocks_are_believed() -> None:
    hard, easy = learned([0.5, 16.0] * 8).factor(np.arange(16), LONG).reshape(-1, 2).mean(axis=0)
    assert hard == pytest.approx(0.5 / 4, abs=0.15)
    assert easy == pytest.approx(16 / 4, rel=0.25)


def test_a_short_memory_follows_an_answer_that_changes() -> None:
    by_request = learned([0.5, 16.0] * 8)
    hard = np.array([0])
    for _ in range(10):
        by_request.learn(hard, np.array([16]), np.array([4.0]))
    by_long, by_short = (float(by_request.factor(hard, memory)[0]) for memory in (LONG, SHORT))
    assert by_long < 1.5 < by_short


def test_where_only_blocks_differ_they_are_chance() -> None:
    by_request = learned([4.0] * 16, num_blocks=200)
    assert by_request.factor(np.arange(16), LONG).tolist() == pytest.approx([1.0] * 16, abs=0.15)
    assert by_request.weight > 10 * learned([0.5, 16.0] * 8, num_blocks=200).weight


def test_a_request_of_which_nothing_was_thought_may_turn_out_well() -> None:
    by_request = ByRequest(1)
    for _ in range(10):
        by_request.learn(np.array([0]), np.array([3]), np.array([-0.5]))
    assert 1 < by_request.factor(np.array([0]), LONG)[0] < np.inf


def test_choices_are_corrected_by_what_their_own_blocks_emitted() -> None:
    by_choice = ByChoice(np.zeros(3, dtype=np.bool_))
    by_choice.learn(np.array([0, 0, 1]), np.array([2, 4, 8]), np.array([4.0, 8.0, 4.0]))
    weight = np.full(3, 6.0)
    assert by_choice.factor(weight) == pytest.approx([12 / 18, 14 / 10, 1.0], rel=0.01)
    by_choice.think_anew(np.array([0.5, 1.0, 1.0]))
    assert by_choice.factor(weight)[0] == pytest.approx(1.0, rel=0.01)
    by_choice.fade(0.0)
    assert by_choice.factor(weight).tolist() == [1.0] * 3


def test_a_choice_that_was_not_tried_is_off_by_as_much_as_those_that_are_alike() -> None:
    by_choice = ByChoice(np.array([False, True, True]))
    by_choice.learn(np.full(400, 1), np.full(400, 2), np.full(400, 4.0))
    apart, tried, untried = by_choice.factor(np.full(3, 40.0))
    assert apart == 1.0
    assert tried == pytest.approx(0.5, abs=0.03)
    assert untried == pytest.approx(tried, abs=0.03)
