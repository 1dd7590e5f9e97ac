"""Which way requests take on a card that is known: found, kept, and doubted from time to time."""

from __future__ import annotations

from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
from router_scenes import CHOICES, FREE, PINNED, PINNED_BLOCKS, WIDTHS, card, drafts, requests_of
from router_simulation import DRAFTS, ONE_BY_ONE, Simulation, best_fixed, measured
from simulated_texts import ChanceText

from dlm_serve.decoding import AUTOREGRESSIVELY, Choice, Mode, RequestState, Tally
from dlm_serve.routing.batch import RunningRequest
from dlm_serve.routing.costs import CostTable, MeasuredCosts, StepShape
from dlm_serve.routing.measured import MeasuredPolicy
from dlm_serve.routing.policy import Policy
from dlm_serve.routing.router import Decision, Router
from dlm_serve.routing.rules import RulesPolicy

SEED = 5


def simulation_of(chances: list[float], table: CostTable | None = None, seed: int = SEED) -> Simulation:
    simulation = Simulation(table or card(), measured(), seed=seed)
    for chance in chances:
        simulation.add(ChanceText(chance))
    return simulation


@pytest.mark.parametrize("chance", [0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize("num_requests", [1, 4, 16, 64])
def test_it_is_as_fast_as_the_best_fixed_way(chance: float, num_requests: int) -> None:
    simulation, num_steps = simulation_of([chance] * num_requests), 200 + 4000 // num_requests
    simulation.run(200)
    assert simulation.run(num_steps) > 0.95 * best_fixed([chance] * num_requests, simulation.table)


@pytest.mark.parametrize(("prefill_ms", "mode"), [(0.0, Mode.AUTOREGRESSIVE), (15.0, Mode.SELF_SPECULATION)])
def test_where_prefills_interrupt_steps_blocks_pay_earlier(prefill_ms: float, mode: Mode) -> None:
    """Answers of some 50 tokens follow each other, so that hardly a step has no prefill behind it."""

    def run(simulation: Simulation, num_steps: int) -> float:
        lengths, tokens, ms = np.random.default_rng(1), 0.0, 0.0
        for _ in range(num_steps):
            simulation.keep(128, lambda: ChanceText(0.85, length=max(8, int(lengths.exponential(50)))))
            emitted, took = simulation.step()
            tokens, ms = tokens + emitted, ms + took
        return tokens / ms

    options: dict[str, Any] = {"table": card(free_tokens=128), "prefill_ms": prefill_ms, "promptness": 0.5}
    auto = Simulation(policy=measured(), **options)
    run(auto, 100)
    speed = run(auto, 300)
    assert auto.share(mode) > 0.9
    assert speed > 0.95 * max(
        run(Simulation(settings=settings, **options), 300) for settings in (ONE_BY_ONE, *DRAFTS[:2])
    )


def test_requests_of_two_kinds_are_split() -> None:
    """On a card where blocks cost: those whose drafts are right decode blocks, the others do not.

    None ends, which the router has to see.
    """
    chances, speeds, shares = [0.97, 0.2] * 16, [], []
    for seed in range(12):
        simulation = simulation_of(chances, card(free_tokens=64, ms_per_token=0.05), seed)
        simulation.run(1600)
        before = [one_by_one(request.state) for request in simulation.requests]
        speeds.append(simulation.run(400) / best_fixed(chances, simulation.table))
        after = [one_by_one(request.state) for request in simulation.requests]
        shares.append((np.array(after) - before) / 400)
    assert min(speeds) > 1.05
    easy, hard = np.median(shares, axis=0).reshape(-1, 2).T
    assert easy.mean() < 0.2
    assert hard.mean() > 0.7


def one_by_one(state: RequestState) -> int:
    """The number of a request's tokens that were decoded autoregressively."""
    return state.tallies.get(AUTOREGRESSIVELY, Tally()).num_tokens


def test_where_drafts_never_pay_trials_take_little_time() -> None:
    simulation = simulation_of([0.05] * 64, card(free_tokens=64, ms_per_token=0.05))
    simulation.run(200)
    assert simulation.run(1500) > 0.98 * best_fixed([0.05] * 64, simulation.table)


def test_a_change_of_the_text_is_noticed() -> None:
    """Requests that decode one by one show nothing; a trial does."""
    simulation = simulation_of([0.05] * 4)
    simulation.run(300)
    assert simulation.share(Mode.AUTOREGRESSIVE) > 0.7
    for request in simulation.requests:
        assert isinstance(request.text, ChanceText)
        request.text.chance = 0.97
    simulation.run(2500)
    assert simulation.share(Mode.SELF_SPECULATION) == 1


def test_it_does_not_flap_between_equals() -> None:
    """Requests are moved less than once in a thousand steps, trials left out, which may move all there and back."""
    moves = []
    for seed in range(12):
        simulation = simulation_of([0.55] * 8, seed=seed)
        simulation.run(500)
        moves.append(lasting_moves(simulation, 1000))
    assert np.mean(moves) < 8


def lasting_moves(simulation: Simulation, num_steps: int) -> int:
    """How often requests go on in another way than before, in so many steps."""
    assert simulation.router is not None
    moves, kinds = 0, None
    for _ in range(num_steps):
        simulation.step()
        outcome = simulation.router.outcome
        assert outcome is not None
        if not outcome.num_trial_steps:
            moves += 0 if kinds is None else int((outcome.kinds != kinds).sum())
            kinds = outcome.kinds
    return moves


def test_after_a_change_of_load_it_is_as_good_as_can_be_within_50_steps() -> None:
    auto, clairvoyant = Simulation(card(), measured()), Simulation.clairvoyant(card())
    for simulation in (auto, clairvoyant):
        simulation.keep(1, lambda: ChanceText(0.85))
        simulation.run(200)
    for concurrency in (64, 1, 64):
        rates = []
        for simulation in (auto, clairvoyant):
            simulation.keep(concurrency, lambda: ChanceText(0.85))
            simulation.run(50)
            rates.append(simulation.run(2000 if concurrency == 1 else 100))
        assert rates[0] > 0.93 * rates[1]


def decided(policy: Policy, requests: list[RunningRequest]) -> Decision:
    decision = Router(policy, MeasuredCosts(card()), 256).decide(requests, 0)
    assert decision is not None
    return decision


def test_a_decision_says_what_changes_how_new_requests_begin_and_what_steps_cost() -> None:
    requests = requests_of([FREE] * 128 + [PINNED])
    policy = MeasuredPolicy(CHOICES, 256, 0.03, 0.01)
    router = Router(policy, MeasuredCosts(card(free_tokens=8, ms_per_token=0.5)), 256)
    decision = router.decide(requests, 0)
    assert decision == Decision({str(number): None for number in range(128)}, None, router.costs.table)
    assert router.decide(requests, 8) is None
    autoregressive = pytest.approx(129 / (7 + 0.5 * 121 + 129 * 100 * 1e-5) * 1000, abs=0.1)
    report = router.report()
    each = report.pop("expected_of_each")
    assert isinstance(each, dict)
    assert each == {"autoregressive": autoregressive, **{f"self_speculation/{width}": ANY for width in WIDTHS}}
    assert max(each.values()) == each["autoregressive"]
    assert report == {
        "policy": "measured",
        "requests": {"autoregressive": 128},
        "expected_tokens_per_s": autoregressive,
        "switches": 128,
        "trials": 0,
    }


@pytest.mark.parametrize(
    ("since", "num_rows", "is_due"), [(0, 40, False), (1, 11, False), (1, 13, True), (1, 7, True), (8, 10, True)]
)
def test_it_decides_every_few_steps_or_when_much_has_changed(since: int, num_rows: int, is_due: bool) -> None:
    router = Router(MeasuredPolicy(CHOICES, 64, 0.03, 0.01), MeasuredCosts(card()), 64)
    router.decide(requests_of([FREE] * 10), 100)
    assert router.is_due(100 + since, num_rows) is is_due


def test_pinned_requests_are_left_alone() -> None:
    router = Router(MeasuredPolicy(CHOICES, 8, 0.03, 0.01), MeasuredCosts(card()), 8)
    first = router.decide(requests_of([PINNED] * 3), 0)
    assert first == Decision({}, None, router.costs.table)
    assert router.report() == {"policy": "measured"}


def test_where_there_is_nothing_to_choose_costs_are_learned_all_the_same() -> None:
    """As with a family of one mode."""
    router = Router(MeasuredPolicy((), 8, 0.03, 0.01), MeasuredCosts(card()), 8)
    assert router.decide(requests_of([PINNED_BLOCKS] * 3), 0) == Decision({}, None, router.costs.table)
    for _ in range(100):
        router.observe(StepShape(num_blocks=3, width=16), 14.0)
    decision = router.decide(requests_of([PINNED_BLOCKS] * 3), 16)
    assert decision is not None
    assert decision.costs is not None
    assert decision.costs.ms(StepShape(num_blocks=3, width=16)) == pytest.approx(14.0, rel=0.02)


RULES = {
    "short": (40, False, None),
    "long": (64, False, Choice(Mode.DIFFUSION, 32)),
    "streamed": (64, True, Choice(Mode.SELF_SPECULATION, 32)),
}


@pytest.mark.parametrize(("answer_length", "is_streaming", "way"), RULES.values(), ids=RULES)
def test_rules(answer_length: int, is_streaming: bool, way: Choice | None) -> None:
    choices = (Choice(Mode.SELF_SPECULATION, 32), Choice(Mode.DIFFUSION, 32))
    plan = type(FREE)((drafts(32), FREE.permitted[-1], type(FREE.permitted[0])(Mode.DIFFUSION, 32, 0.9, 32)))
    state = RequestState(plan, is_streaming=is_streaming)
    request = RunningRequest("r", state, 10, answer_length, answer_length)
    kept = Choice(Mode.SELF_SPECULATION, 32)
    found = decided(RulesPolicy(choices, short_answer=64, most_in_blocks=1), [request]).choices.get("r", kept)
    assert found == way
    crowd = [request, request._replace(rid="s", state=RequestState(plan))]
    crowded = decided(RulesPolicy(choices, short_answer=64, most_in_blocks=1), crowd)
    assert (crowded.choices, crowded.first) == ({"r": None, "s": None}, None)
