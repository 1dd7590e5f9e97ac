"""What the router keeps of requests, trials and pins from one decision to the next, and what it lets go."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from router_scenes import CHOICES, FREE, ONE_BY_ONE, PINNED, WIDTHS, card, drafts, request_of, requests_of

from dlm_serve.decoding import AUTOREGRESSIVELY, Choice, DecodePlan, Evidence
from dlm_serve.routing.costs import MeasuredCosts, StepShape
from dlm_serve.routing.measured import MeasuredPolicy
from dlm_serve.routing.pinned import PinnedPolicy
from dlm_serve.routing.router import Router

OF_8 = DecodePlan((drafts(8), ONE_BY_ONE))
POOR, WHOLE = Evidence(CHOICES[3], 1, 2), Evidence(CHOICES[3], 32, 2)


def router_of(choices: tuple[Choice, ...] = CHOICES, capacity: int = 8, trial_share: float = 0.0) -> Router:
    return Router(MeasuredPolicy(choices, capacity, 0.03, trial_share), MeasuredCosts(card()), capacity)


def usual(router: Router) -> list[float]:
    assert isinstance(router.policy, MeasuredPolicy)
    found: list[float] = router.policy.yields.usual().tolist()
    return found


@pytest.mark.parametrize("is_pinned", [True, False])
def test_while_it_is_pinned_it_learns_nothing_about_drafts(is_pinned: bool) -> None:
    router, [request] = router_of(), requests_of([FREE])
    router.decide([request], 0)
    before = usual(router)
    if is_pinned:
        router.pin(PinnedPolicy(CHOICES, AUTOREGRESSIVELY))
    for step in range(8, 80, 8):
        request.state.evidence += [POOR] * 4
        router.decide([request], step)
        assert not request.state.evidence
    router.pin(None)
    router.decide([request], 80)
    assert (usual(router) == before) is is_pinned


def test_what_old_weights_drafted_is_not_learned_of_the_new() -> None:
    """Neither what was read of it, nor what was not."""
    router, new = router_of(), router_of()
    [request] = requests_of([FREE])
    for step in (0, 8):
        router.decide([request], step)
        request.state.evidence += [WHOLE] * 30
    router.start_anew()
    router.decide([request], 16)
    assert usual(router) == pytest.approx(usual(new))


def test_a_slot_says_nothing_of_the_request_before() -> None:
    """Not of its difficulty, nor of a trial of it, nor of the ways that it permitted."""
    router = router_of(capacity=1)
    [easy] = requests_of([FREE])
    router.decide([easy], 0)
    easy.state.evidence += [WHOLE] * 30
    router.decide([easy], 8)
    router.policy._kinds_before[0] = 3  # type: ignore[attr-defined]  # as in a trial
    decision = router.decide([request_of(OF_8, rid="another")], 16)
    assert decision is not None
    assert decision.choices == {}
    assert router.report()["requests"] == {"self_speculation/8": 1}
    yields = router.policy.yields  # type: ignore[attr-defined]
    expected = yields.expected(np.array([0]), np.array([1e9]))[:, 0]
    assert expected.tolist() == pytest.approx(usual(router))


def test_a_request_whose_blocks_are_of_no_choice_is_left_alone() -> None:
    """Whatever of a mode and a length it named; and all are, where there is no choice."""
    for choices in (CHOICES[:1], ()):
        router = router_of(choices)
        router.decide(requests_of([OF_8]), 0)
        assert router.report() == {"policy": "measured"}


def test_a_trial_that_outlives_its_requests_is_forgotten() -> None:
    router = router_of()
    router.decide(requests_of([FREE]), 0)
    assert router.outcome is not None
    router.outcome = replace(router.outcome, num_trial_steps=2)
    router.decide(requests_of([PINNED]), 1)
    assert not router.is_due(3, 1)


@pytest.mark.parametrize(("trial_share", "has_trials"), [(0.0, False), (0.01, True)])
def test_there_are_trials_where_they_may_take_time(trial_share: float, has_trials: bool) -> None:
    router, requests = router_of(trial_share=trial_share), requests_of([FREE])
    assert isinstance(router.policy, MeasuredPolicy)
    for step in range(0, 80, 8):
        router.decide(requests, step)
        requests[0].state.evidence += [Evidence(CHOICES[0], 1, 2)] * (4 if step < 16 else 0)  # poor, and soon none
        router.observe(StepShape(num_decode=1), 100.0)
    assert (router.num_trials > 0) is has_trials


@pytest.mark.parametrize(("num_rows", "between"), [(1, 8), (31, 8), (32, 16), (95, 16), (96, 32)])
def test_the_more_requests_the_more_seldom_it_decides(num_rows: int, between: int) -> None:
    router = router_of(capacity=128)
    router.decide(requests_of([PINNED] * num_rows), 0)
    assert [router.is_due(since, num_rows) for since in (between - 1, between)] == [False, True]


def test_a_limit_that_the_present_split_breaks_is_kept() -> None:
    policy = MeasuredPolicy(CHOICES, 8, 0.03, 0.0, latency_slo_ms=7.5)
    router = Router(policy, MeasuredCosts(card(free_tokens=64)), 8)
    policy.yields.expected = lambda slots, remaining: np.repeat(  # type: ignore[method-assign]
        np.array(WIDTHS)[:, None] / 2, len(slots), axis=1
    )
    decision = router.decide(requests_of([FREE] * 8), 0)
    assert decision is not None
    assert set(decision.choices.values()) == {CHOICES[1]}
