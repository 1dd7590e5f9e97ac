"""Which way requests take on a card that is known: found, kept, and doubted from time to time."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from router_scenes import CHOICES, FREE, PINNED, WIDTHS, card, drafts, requests_of

from dlm_serve.decoding import Evidence, Mode, RequestState
from dlm_serve.routing.batch import Choice, RunningRequest
from dlm_serve.routing.costs import CostTable, MeasuredCosts, StepShape
from dlm_serve.routing.measured import MeasuredPolicy
from dlm_serve.routing.router import Decision, Policy, Router
from dlm_serve.routing.rules import RulesPolicy


@dataclass
class Load:
    """Requests that never end, on a simulated card; drafts of each are right with a chance of its own."""

    chances: list[float]
    table: CostTable = field(default_factory=card)
    policy: Policy = field(default_factory=lambda: MeasuredPolicy(CHOICES, 256, hysteresis=0.03, trial_share=0.01))
    step: int = 0
    tokens: float = 0.0
    ms: float = 0.0

    def __post_init__(self) -> None:
        self.router = Router(self.policy, MeasuredCosts(self.table), 256)
        self.random = np.random.default_rng(5)
        self.requests = requests_of([FREE] * len(self.chances))
        self.ways: dict[str, Choice | None] = {request.rid: CHOICES[-1] for request in self.requests}

    def run(self, num_steps: int) -> float:
        """Run so many steps of two forwards each, a block or two tokens; return tokens per millisecond."""
        tokens = ms = 0.0
        for _ in range(num_steps):
            for request, chance in zip(self.requests, self.chances, strict=True):
                tokens += self.decode(request.state, self.ways[request.rid], chance)
            shape = self.shape()
            ms += 2 * self.table.ms(shape)
            for _ in range(2):
                self.router.observe(shape, self.table.ms(shape))
            self.step += 2
            if self.router.is_due(self.step, len(self.requests)):
                decision = self.router.decide(self.requests, self.step)
                self.ways |= decision.choices if decision else {}
        return tokens / ms

    def decode(self, state: RequestState, way: Choice | None, chance: float) -> int:
        if way is None:
            return 2
        wrong = np.flatnonzero(self.random.random(way[1] - 1) >= chance)
        emitted = int(wrong[0]) + 1 if len(wrong) else way[1]
        state.evidence.append(Evidence(Mode.SELF_SPECULATION, way[1], emitted, 2))
        return emitted

    def shape(self) -> StepShape:
        blocks = [way[1] for way in self.ways.values() if way is not None]
        apart = StepShape(len(self.ways) - len(blocks), 0, len(blocks), max(blocks, default=1))
        padded = StepShape(num_blocks=len(self.ways), width=apart.width)
        return padded if blocks and self.table.ms(padded) <= self.table.ms(apart) else apart

    def share(self, way: Choice | None) -> float:
        return sum(found == way for found in self.ways.values()) / len(self.ways)


def tokens_per_block(chance: float, width: int) -> float:
    return sum(chance**drafts for drafts in range(width))


def best_fixed(chances: list[float], table: CostTable) -> tuple[Choice | None, float]:
    """The best single way for all requests, and its tokens per millisecond."""
    num = len(chances)
    rates: dict[Choice | None, float] = {None: num / table.ms(StepShape(num_decode=num))}
    for choice in CHOICES:
        tokens = sum(tokens_per_block(chance, choice[1]) for chance in chances) / 2
        rates[choice] = tokens / table.ms(StepShape(num_blocks=num, width=choice[1]))
    best = max(rates, key=lambda choice: rates[choice])
    return best, rates[best]


@pytest.mark.parametrize("chance", [0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize("num_requests", [1, 4, 16, 64])
def test_it_is_as_fast_as_the_best_fixed_way(chance: float, num_requests: int) -> None:
    load = Load([chance] * num_requests)
    load.run(150)
    assert load.run(250) > 0.95 * best_fixed(load.chances, load.table)[1]


def test_requests_of_two_kinds_are_split() -> None:
    """On a card where blocks cost: those whose drafts are right decode blocks, the others do not."""
    load = Load([0.97, 0.2] * 16, card(free_tokens=64, ms_per_token=0.05))
    load.run(150)
    assert load.run(250) > 1.05 * best_fixed(load.chances, load.table)[1]
    in_blocks = [load.ways[request.rid] is not None for request in load.requests]
    assert np.mean(in_blocks[::2]) > 0.9
    assert np.mean(in_blocks[1::2]) < 0.2


def test_where_drafts_never_pay_trials_take_little_time() -> None:
    load = Load([0.05] * 64, card(free_tokens=64, ms_per_token=0.05))
    load.run(200)
    assert load.share(None) == 1
    assert load.run(800) > 0.98 * best_fixed(load.chances, load.table)[1]


def test_a_change_of_the_text_is_noticed() -> None:
    """Requests that decode one by one show nothing; a trial does."""
    load = Load([0.05] * 4)
    load.run(300)
    assert load.share(None) == 1
    load.chances = [0.97] * 4
    load.run(1500)
    assert load.share(None) == 0


def test_it_does_not_flap_between_equals() -> None:
    load = Load([0.55] * 8)
    load.run(500)
    before = load.router.num_switches
    load.run(500)
    assert load.router.num_switches - before < 0.01 * 8 * 1000


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
    assert router.report() == {
        "policy": "measured",
        "requests": {"autoregressive": 128},
        "expected_tokens_per_s": pytest.approx(129 / (7 + 0.5 * 121 + 129 * 100 * 1e-5) * 1000, abs=0.1),
        "expected_autoregressive": pytest.approx(129 / (7 + 0.5 * 121 + 129 * 100 * 1e-5) * 1000, abs=0.1),
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


RULES = {
    "short": (40, False, None),
    "long": (64, False, (Mode.DIFFUSION, 32)),
    "streamed": (64, True, (Mode.SELF_SPECULATION, 32)),
}


@pytest.mark.parametrize(("answer_length", "is_streaming", "way"), RULES.values(), ids=RULES)
def test_rules(answer_length: int, is_streaming: bool, way: Choice | None) -> None:
    choices = ((Mode.SELF_SPECULATION, 32), (Mode.DIFFUSION, 32))
    plan = type(FREE)((drafts(32), FREE.permitted[-1], type(FREE.permitted[0])(Mode.DIFFUSION, 32, 0.9, 32)))
    state = RequestState(plan, is_streaming=is_streaming)
    request = RunningRequest("r", state, 10, answer_length, answer_length)
    kept = (Mode.SELF_SPECULATION, 32)
    found = decided(RulesPolicy(choices, short_answer=64, most_in_blocks=1), [request]).choices.get("r", kept)
    assert found == way
    crowd = [request, request._replace(rid="s", state=RequestState(plan))]
    crowded = decided(RulesPolicy(choices, short_answer=64, most_in_blocks=1), crowd)
    assert (crowded.choices, crowded.first) == ({"r": None, "s": None}, None)


def test_widths_are_listed_once() -> None:
    assert tuple(width for _, width in CHOICES) == WIDTHS
