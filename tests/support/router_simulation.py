"""A server without a model: requests, steps and the router are the real ones; forwards take time and accept drafts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_serve.decoding import Choice, DecodePlan, Mode, ModeSettings, RequestState
from dlm_serve.families import NEMOTRON_LABS_DIFFUSION
from dlm_serve.routing.batch import AUTOREGRESSIVE, RunningBatch, RunningRequest
from dlm_serve.routing.costs import CostTable, MeasuredCosts, StepShape
from dlm_serve.routing.measured import MeasuredPolicy
from dlm_serve.routing.policy import Splits
from dlm_serve.routing.prefills import Interruptions, PrefillShape
from dlm_serve.routing.router import Outcome, Policy, Router
from dlm_serve.scheduling.step_plan import StepPlan

COMMIT = NEMOTRON_LABS_DIFFUSION.commit
WIDTHS, BUDGETS = (4, 8, 16, 32), (16, 32, 64, 96, 128)
ONE_BY_ONE = ModeSettings(Mode.AUTOREGRESSIVE, 1)
DRAFTS = tuple(ModeSettings(Mode.SELF_SPECULATION, width, 0.0, width) for width in WIDTHS)
SPECULATIONS = tuple(ModeSettings(Mode.SELF_SPECULATION, 32, 0.0, 32, budget=budget) for budget in BUDGETS)
CHOICES: tuple[Choice, ...] = tuple(settings.choice for settings in DRAFTS)
ALL_CHOICES: tuple[Choice, ...] = (*CHOICES, *(settings.choice for settings in SPECULATIONS))
PINNED = {settings: DecodePlan((settings,)) for settings in (ONE_BY_ONE, *DRAFTS, *SPECULATIONS)}


MOST_TOKENS = 1_000_000
"""What requests allow for: nobody knows where answers end."""


def plan_of(choices: Sequence[Choice]) -> DecodePlan:
    """Return the plan of a request that may decode in each of `choices`, and autoregressively."""
    settings = [one for one in (*SPECULATIONS, *reversed(DRAFTS)) if one.choice in choices]
    return DecodePlan((*settings, ONE_BY_ONE))


def tokens_per_block(chance: float, width: int) -> float:
    """Return what a block yields on average, where each draft is right with `chance`."""
    return float(sum(chance**drafts for drafts in range(width)))


@dataclass
class Text:
    """A request's answer: its length, and how likely its drafts are right."""

    chance: float
    length: int = 1_000_000
    num_prompt: int = 100
    chances: Mapping[int, float] = field(default_factory=dict)
    """The same by budget, in one forward; as `chance` where it is not said."""

    def tokens(self, choice: Choice, width: int | None = None) -> tuple[float, int]:
        """Return how likely a draft is right, and the most tokens of a forward or block, in rows of `width`."""
        if choice.budget is None:
            return self.chance, choice.block_length
        budget = width or choice.budget
        near = min(self.chances, key=lambda one: abs(one - budget), default=None)
        return self.chance if near is None else self.chances[near], min(budget // 2, choice.block_length)


@dataclass
class Running:
    """A request of the simulation."""

    rid: str
    text: Text
    state: RequestState
    remaining: int
    is_drafted: bool = False
    """Whether it has a draft."""
    is_over: bool = False
    """Whether its answer has ended, which shows when another step is launched."""


def measured(num_slots: int = 256, choices: Sequence[Choice] = CHOICES) -> MeasuredPolicy:
    """The policy with the settings that servers have by default."""
    return MeasuredPolicy(choices, num_slots, hysteresis=0.03, trial_share=0.01)


class Clairvoyant(Policy):
    """Knows the texts, and what steps cost; asked before every step."""

    name = "clairvoyant"

    def __init__(self, choices: Sequence[Choice], text_of: Callable[[str], Text]) -> None:
        super().__init__(choices)
        self._text_of = text_of

    def choose(self, batch: RunningBatch, table: CostTable, interruptions: Interruptions, elapsed_ms: float) -> Outcome:
        """See `Policy`."""
        ends, yields = interruptions.ends_per_token, np.empty((len(self.choices), len(batch.free)))
        for k, choice in enumerate(self.choices):
            chances, most = zip(*(self._text_of(request.rid).tokens(choice) for request in batch.free), strict=True)
            goes_on = np.array(chances) * math.exp(-ends)
            tokens = np.minimum((1 - goes_on ** most[0]) / (1 - goes_on), batch.remaining)
            forwards, fresh = (2, 0) if choice.budget is None else (1, tokens - 1)
            yields[k] = tokens / (forwards + ends * (tokens + fresh))  # an end shows late, and a first forward emits 1
        split = Splits(batch, table, interruptions).best(yields)
        kind = int(split.kinds.max())
        return Outcome(split.kinds, None if kind == AUTOREGRESSIVE else self.choices[kind], split.tokens)


@dataclass
class Simulation:
    """Requests on a card. Fixed `settings` take the place of a router."""

    table: CostTable
    policy: Policy | None = None
    settings: ModeSettings | None = None
    seed: int = 5
    every_step: bool = False
    """Whether the policy is asked before every step."""
    choices: Sequence[Choice] = CHOICES
    """How requests that are not fixed may decode, beside autoregressively."""
    prefill_ms: float = 0.0
    """What a prefill takes, of however many requests."""
    promptness: float = 1.0
    """How likely a client that has its answer sends the next request by the next step."""
    is_late: bool = False
    """Whether the end of an answer shows a step late, so that its row decodes once more for nothing."""
    requests: list[Running] = field(default_factory=list)
    num_steps: int = 0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.router = Router(self.policy, MeasuredCosts(self.table), 256) if self.policy else None
        self._first: Choice | None = self.choices[-1]
        self._free = plan_of(self.choices)
        self._numbers = itertools.count()
        self._num_new = 0
        self.texts: dict[str, Text] = {}

    @classmethod
    def clairvoyant(cls, table: CostTable, **options: Any) -> Simulation:
        """Return one that decides as well as can be."""
        simulation = cls(table, every_step=True, **options)
        simulation.policy = Clairvoyant(simulation.choices, lambda rid: simulation.texts[rid])
        simulation.__post_init__()
        return simulation

    def add(self, text: Text) -> None:
        """Let a request begin."""
        state = RequestState(self._free if self.settings is None else PINNED[self.settings])
        state.start_as(self._first)
        state.begin(self.num_steps)
        self.requests.append(Running(str(next(self._numbers)), text, state, text.length))
        self.texts[self.requests[-1].rid] = text
        self._num_new += 1

    def keep(self, concurrency: int, texts: Callable[[], Text]) -> None:
        """Let as many requests run: new ones begin, or those that run longest are cut off."""
        del self.requests[: max(len(self.requests) - concurrency, 0)]
        for _ in range(concurrency - len(self.requests)):
            if self.random.random() < self.promptness:
                self.add(texts())

    def step(self) -> tuple[int, float]:
        """Run a step, and before it the prefill of new requests; return the tokens it emitted and the milliseconds."""
        prefill_ms = self._prefill()
        self.decide()
        for request in self.requests:
            request.state.offer(self.num_steps, COMMIT.steps_per_block(request.state.current))
        plan = StepPlan.of([request.state for request in self.requests], COMMIT, self.table)
        shape = StepShape(num_decode=len(plan.decode_rows), num_blocks=len(plan.block_rows), width=plan.width)
        contexts = [request.text.num_prompt + request.text.length - request.remaining for request in self.requests]
        mean = sum(contexts) / max(len(contexts), 1)
        full = replace(
            shape, decode_context=round(mean * shape.num_decode), block_context=round(mean * shape.num_blocks)
        )
        ms = self.table.ms(full)
        going_on = [request for request in self.requests if not request.is_over]
        tokens = sum(self._decode(request, plan.width) for request in going_on)
        self.requests = [request for request in going_on if self.is_late or not request.is_over]
        self.num_steps += 1
        if self.router is not None:
            self.router.observe(shape, ms * self.random.uniform(0.97, 1.03))
        return tokens, ms + prefill_ms

    def _prefill(self) -> float:
        """Return the milliseconds of the prefill of new requests."""
        num_new, self._num_new = self._num_new, 0
        if not num_new or not self.prefill_ms:
            return 0.0
        if self.router is not None:
            self.router.observe_prefill(PrefillShape(num_new, 40 * num_new), self.prefill_ms)
        return self.prefill_ms

    def run(self, num_steps: int) -> float:
        """Run so many steps; return tokens per millisecond."""
        steps = [self.step() for _ in range(num_steps)]
        return sum(tokens for tokens, _ in steps) / sum(ms for _, ms in steps)

    def share(self, mode: Mode) -> float:
        """Return the proportion of the requests that decode in `mode`."""
        return float(np.mean([request.state.current.mode is mode for request in self.requests]))

    def decide(self) -> None:
        """Ask the router, if it is due, and do as it says."""
        router = self.router
        if router is None or not (self.every_step or router.is_due(self.num_steps, len(self.requests))):
            return
        running = [
            RunningRequest(r.rid, r.state, r.text.num_prompt, MOST_TOKENS, MOST_TOKENS - r.text.length + r.remaining)
            for r in self.requests
        ]
        decision = router.decide(running, self.num_steps)
        if decision is not None:
            self._first = decision.first
            for request in self.requests:
                if request.rid in decision.choices:
                    request.state.go_on_as(decision.choices[request.rid])

    def _decode(self, request: Running, width: int) -> int:
        """Return the tokens that a step with rows of `width` emits for `request`.

        It drafts in one step and verifies in the next, or does both in each, the first of which has no draft.
        """
        settings = request.state.current
        emitted = 1
        if settings.mode is Mode.SELF_SPECULATION:
            chance, most = request.text.tokens(settings.choice, width)
            in_turn = settings.budget is None
            if request.is_drafted:
                emitted = min(int(self.random.geometric(1 - chance)), most)
            elif in_turn:
                emitted = 0
            request.is_drafted = not (in_turn and request.is_drafted)
        else:
            request.is_drafted = False
        request.state.end_step(emitted)
        used = min(emitted, request.remaining)
        request.remaining -= used
        request.is_over = not request.remaining
        if request.is_over:
            request.state.end_answer(used)
        return used


def best_fixed(chances: Sequence[float], table: CostTable) -> float:
    """Return the tokens per millisecond of the best single way for requests that never end."""
    num = len(chances)
    rates = [num / table.ms(StepShape(num_decode=num))]
    for width in WIDTHS:
        tokens = sum(tokens_per_block(chance, width) for chance in chances) / 2
        rates.append(tokens / table.ms(StepShape(num_blocks=num, width=width)))
    return max(rates)


def curve(points: dict[int, float], max_tokens: int) -> NDArray[np.float64]:
    """Return milliseconds by the number of tokens, between `points` and beyond them."""
    tokens, ms = list(points), list(points.values())
    slope = (ms[-1] - ms[-2]) / (tokens[-1] - tokens[-2])
    every = np.arange(max_tokens + 1)
    return np.where(every > tokens[-1], ms[-1] + slope * (every - tokens[-1]), np.interp(every, tokens, ms))
