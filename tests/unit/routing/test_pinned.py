"""A router that is pinned moves all requests that may move, and goes on by itself when it is released."""

from __future__ import annotations

import pytest
from router_scenes import CHOICES, FREE, ONE_BY_ONE, PINNED, card, drafts, requests_of

from dlm_serve.decoding import AUTOREGRESSIVELY, Choice, DecodePlan, Mode
from dlm_serve.routing.costs import MeasuredCosts
from dlm_serve.routing.measured import MeasuredPolicy
from dlm_serve.routing.pinned import PinnedPolicy
from dlm_serve.routing.router import Router

SHORT: Choice = Choice(Mode.SELF_SPECULATION, 8)
OF_4_OR_32 = DecodePlan((drafts(32), drafts(4), ONE_BY_ONE))


def router_of() -> Router:
    """One that has told its ranks what steps cost."""
    router = Router(MeasuredPolicy(CHOICES, 8, 0.03, 0.0), MeasuredCosts(card()), 8)
    router.decide([], 0)
    return router


@pytest.mark.parametrize(
    ("pinned", "choices", "first"),
    [
        (AUTOREGRESSIVELY, {"0": None, "1": None}, None),
        (SHORT, {"0": SHORT, "1": Choice(Mode.SELF_SPECULATION, 4)}, SHORT),
    ],
)
def test_all_that_may_move_do(pinned: Choice, choices: dict[str, Choice | None], first: Choice | None) -> None:
    """The nearest length that a request permits; a request that named its mode keeps it."""
    router, requests = router_of(), requests_of([FREE, OF_4_OR_32, PINNED])
    router.pin(PinnedPolicy(CHOICES, pinned))
    assert router.is_due(1, 3)
    decision = router.decide(requests, 1)
    assert decision is not None
    assert (decision.choices, decision.first) == (choices, first)
    assert router.decide(requests, 9) is None
    assert router.report()["policy"] == "pinned"


def test_requests_that_come_later_begin_so() -> None:
    router = router_of()
    router.pin(PinnedPolicy(CHOICES, SHORT))
    decision = router.decide([], 0)
    assert decision is not None
    assert (decision.choices, decision.first) == ({}, SHORT)


def test_what_is_released_is_chosen_by_the_policy_again() -> None:
    router, requests = router_of(), requests_of([FREE] * 2)
    router.pin(PinnedPolicy(CHOICES, AUTOREGRESSIVELY))
    router.decide(requests, 1)
    router.pin(None)
    assert router.is_due(1, 2)
    router.decide(requests, 1)
    assert router.report()["policy"] == "measured"
    assert router.report()["expected_tokens_per_s"] is not None
