"""A server without a model: requests, steps and the router are the real ones; forwards take time and accept drafts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
WIDTHS = (4, 8, 16, 32)
CHOICES: tuple[Choice, ...] = tuple(Choice(Mode.SELF_SPECULATION, width) for width in WIDTHS)
ONE_BY_ONE = ModeSettings(Mode.AUTOREGRESSIVE, 1)
DRAFTS = tuple(ModeSettings(Mode.SELF_SPECULATION, width, 0.0, width) for width in WIDTHS)
FREE = DecodePlan((*reversed(DRAFTS), ONE_BY_ONE))
PINNED = {settings: DecodePlan((settings,)) for settings in (ONE_BY_ONE, *DRAFTS)}


def tokens_per_block(chance: float, width: int) -> float:
    """Return what a block yields on average, where each draft is right with `chance`."""
    return float(sum(chance**drafts for drafts in range(width)))


@dataclass
class Text:
    """A request's answer: its length, and how likely its drafts are right."""

    chance: float
    length: int = 1_000_000
    num_prompt: int = 100


@dataclass
class Running:
    """A request of the simulation."""

    rid: str
    text: Text
    state: RequestState
    remaining: int
    is_drafted: bool = False


def measured(num_slots: int = 256, choices: Sequence[Choice] = CHOICES) -> MeasuredPolicy:
    """The policy with the settings that servers have by default."""
    return MeasuredPolicy(choices, num_slots, hysteresis=0.03, trial_share=0.01)


class Clairvoyant(Policy):
    """Knows how likely each draft is right, and what steps cost; asked before every step."""

    name = "clairvoyant"

    def __init__(self, chance_of: Callable[[str], float]) -> None:
        super().__init__(CHOICES)
        self._chance_of = chance_of

    def choose(self, batch: RunningBatch, table: CostTable, interruptions: Interruptions, elapsed_ms: float) -> Outcome:
        chances = np.array([self._chance_of(request.rid) for request in batch.free])
        lengths = np.array([[float(width)] for width in WIDTHS])
        blocks = (1 - chances**lengths) / (1 - chances)
        split = Splits(batch, table, interruptions).best(np.minimum(blocks, batch.remaining) / 2)
        kind = int(split.kinds.max())
        return Outcome(split.kinds, None if kind == AUTOREGRESSIVE else CHOICES[kind], split.tokens)


@dataclass
class Simulation:
    """Requests on a card. Fixed `settings` take the place of a router."""

    table: CostTable
    policy: Policy | None = None
    settings: ModeSettings | None = None
    seed: int = 5
    every_step: bool = False
    """Whether the policy is asked before every step."""
    prefill_ms: float = 0.0
    """What a prefill takes, of however many requests."""
    promptness: float = 1.0
    """How likely a client that has its answer sends the next request by the next step."""
    requests: list[Running] = field(default_factory=list)
    num_steps: int = 0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.router = Router(self.policy, MeasuredCosts(self.table), 256) if self.policy else None
        self._first: Choice | None = CHOICES[-1]
        self._numbers = itertools.count()
        self._num_new = 0
        self.chances: dict[str, float] = {}

    @classmethod
    def clairvoyant(cls, table: CostTable, **options: Any) -> Simulation:
        """Return one that decides as well as can be."""
        simulation = cls(table, every_step=True, **options)
        simulation.policy = Clairvoyant(lambda rid: simulation.chances[rid])
        simulation.__post_init__()
        return simulation

    def add(self, text: Text) -> None:
        """Let a request begin."""
        state = RequestState(FREE if self.settings is None else PINNED[self.settings])
        state.start_as(self._first)
        state.begin(self.num_steps)
        self.requests.append(Running(str(next(self._numbers)), text, state, text.length))
        self.chances[self.requests[-1].rid] = text.chance
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
        ms = self.table.ms(shape)
        tokens = sum(self._decode(request) for request in self.requests)
        self.requests = [request for request in self.requests if request.remaining]
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
        running = [RunningRequest(r.rid, r.state, r.text.num_prompt, r.text.length, r.remaining) for r in self.requests]
        decision = router.decide(running, self.num_steps)
        if decision is not None:
            self._first = decision.first
            for request in self.requests:
                if request.rid in decision.choices:
                    request.state.go_on_as(decision.choices[request.rid])

    def _decode(self, request: Running) -> int:
        """Return the tokens that a step emits for `request`, which drafts in one and verifies in the next."""
        settings = request.state.current
        emitted = 1
        if settings.mode is Mode.SELF_SPECULATION:
            request.is_drafted = not request.is_drafted
            emitted = 0 if request.is_drafted else self._accepted(request.text.chance, settings.block_length)
        request.state.end_step(emitted)
        used = min(emitted, request.remaining)
        request.remaining -= used
        if emitted and not request.remaining:
            request.state.end_answer(used)
        return used

    def _accepted(self, chance: float, width: int) -> int:
        return min(int(self.random.geometric(1 - chance)), width)


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
