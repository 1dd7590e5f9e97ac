"""Trials take the share of the time that they are allowed, whatever they were thought to lose."""

from __future__ import annotations

import math

import pytest

from dlm_serve.routing.trials import Passed, TrialBudget

SHARE, RATE = 0.01, 4.0


@pytest.mark.parametrize("lost_ms", [10.0, 40.0, 200.0])
def test_no_more_is_lost_than_is_allowed(lost_ms: float) -> None:
    """Each trial is thought to lose 10 ms; a decision comes every 100 ms."""
    budget, lost, time, on_trial = TrialBudget(SHARE), 0.0, 0.0, 0
    for decision in range(20_000):
        emitted = RATE * (100 - (lost_ms if on_trial else 0.0))
        lost, on_trial = lost + (lost_ms if on_trial else 0.0), 0
        budget.let_pass(Passed(100.0, round(emitted)))
        time += 100
        if decision % 3 == 0 and budget.allows(10.0):
            budget.begin(10.0, RATE)
            on_trial = 1
    assert lost == pytest.approx(SHARE * time, rel=0.15)


def test_what_chance_gains_allows_no_more() -> None:
    budget, num_trials = TrialBudget(SHARE), 0
    for decision in range(20_000):
        budget.let_pass(Passed(100.0, 440))
        if decision % 3 == 0 and budget.allows(10.0):
            budget.begin(10.0, RATE)
            num_trials += 1
    assert num_trials * 10.0 == pytest.approx(SHARE * 100 * 20_000, rel=0.1)


def test_what_may_not_be_is_not_made_on_credit() -> None:
    assert not TrialBudget(SHARE).allows(math.inf)
    assert TrialBudget(SHARE).allows(1e6)


def test_without_a_share_there_are_none() -> None:
    budget = TrialBudget(0.0)
    budget.let_pass(Passed(1000.0, 4000))
    assert not budget.allows(1e-6)


def test_behind_new_weights_there_is_as_much_as_at_the_beginning() -> None:
    budget = TrialBudget(SHARE)
    assert not budget.is_spent
    budget.begin(100.0, RATE)
    assert budget.is_spent
    assert not budget.allows(1.0)
    budget.start_anew()
    assert budget.allows(100.0)
