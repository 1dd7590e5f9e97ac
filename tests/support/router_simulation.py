"""A server without a model: requests, steps and the router are the real ones; forwards take time and emit tokens.

What they emit is up to the texts (`simulated_texts.py`). As in a server, the host plans a step before it knows what
the one before emitted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from simulated_texts import ChanceText, Decoding, Text

from dlm_serve.decoding import Choice, DecodePlan, Mode, ModeSettings, RequestState
from dlm_serve.families import NEMOTRON_LABS_DIFFUSION
from dlm_serve.routing.batch import AUTOREGRESSIVE, RunningBatch, RunningRequest
from dlm_serve.routing.costs import CostTable, MeasuredCosts, StepShape
from dlm_serve.routing.measured import MeasuredPolicy
from dlm_serve.routing.policy import Outcome, Policy
from dlm_serve.routing.prefills import Interruptions, PrefillInterval, PrefillShape
from dlm_serve.routing.router import Router
from dlm_serve.routing.splits import Splits, tokens_of
from dlm_serve.routing.trials import Passed
from dlm_serve.scheduling.step_plan import StepPlan

COMMIT = NEMOTRON_LABS_DIFFUSION.commit
WIDTHS = (4, 8, 16, 32)
BUDGETS = (16, 32, 64, 96, 128)
ONE_BY_ONE = ModeSettings(Mode.AUTOREGRESSIVE, 1)
DRAFTS = tuple(ModeSettings(Mode.SELF_SPECULATION, width, 0.0, width) for width in WIDTHS)
IN_ONE_FORWARD = tuple(ModeSettings(Mode.SELF_SPECULATION, 32, 0.0, 32, budget=budget) for budget in BUDGETS)


@dataclass
class Running:
    """A request of the simulation."""

    rid: str
    text: Text
    decoding: Decoding
    state: RequestState
    remaining: int
    """What it is still to emit."""
    num_known: int = 0
    """Tokens of its answer that the host knows."""


def measured(num_slots: int = 256, drafts: Sequence[ModeSettings] = DRAFTS) -> MeasuredPolicy:
    """The policy with the settings that servers have by default."""
    return MeasuredPolicy([each.choice for each in drafts], num_slots, hysteresis=0.03, trial_share=0.01)


class Clairvoyant(Policy):
    """Knows what each text yields on average in each way, and what steps cost; asked before every step.

    Of an answer that changes on its way it does not know where.
    """

    name = "clairvoyant"

    def __init__(self, text_of: Callable[[str], Text], drafts: Sequence[ModeSettings]) -> None:
        super().__init__([each.choice for each in drafts])
        self._text_of = text_of
        self._drafts = sorted(drafts, key=lambda each: each.choice.row_length)
        self._known: dict[str, list[float]] = {}

    def choose(self, batch: RunningBatch, table: CostTable, interruptions: Interruptions, passed: Passed) -> Outcome:
        yields = np.minimum(np.array([self._yields(request.rid) for request in batch.free]).T, batch.remaining)
        split = Splits(batch, table, tokens_of(batch.kinds, yields), interruptions).best(yields)
        kind = int(split.kinds.max())
        return Outcome(split.kinds, None if kind == AUTOREGRESSIVE else self.choices[kind])

    def _yields(self, rid: str) -> list[float]:
        """Return the tokens per step of a request, over those of autoregression, by choice.

        An answer takes a step more than it has forwards, because the host learns late that it has ended.
        """
        if rid not in self._known:
            text = self._text_of(rid)
            forwards = [text.length / text.tokens_per_forward(each) for each in self._drafts]
            self._known[rid] = [(text.length + 1) / (number + 1) for number in forwards]
        return self._known[rid]


@dataclass
class Simulation:
    """Requests on a card. Fixed `settings` take the place of a router, for requests that begin with them."""

    table: CostTable
    policy: Policy | None = None
    settings: ModeSettings | None = None
    drafts: Sequence[ModeSettings] = DRAFTS
    """What requests may decode with that are free, beside autoregression."""
    seed: int = 5
    every_step: bool = False
    """Whether the policy is asked before every step."""
    prefill_ms: float = 0.0
    """What a prefill takes, of however many requests."""
    prefill_interval: PrefillInterval = PrefillInterval()
    promptness: float = 1.0
    """How likely a client that has its answer sends the next request by the next step."""
    requests: list[Running] = field(default_factory=list)
    num_steps: int = 0
    num_decoded: int = 0
    """Tokens that the host knows of."""

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.router = None
        if self.policy is not None:
            self.router = Router(self.policy, MeasuredCosts(self.table), 256, self.prefill_interval)
        self._free = DecodePlan((*reversed(self.drafts), ONE_BY_ONE))
        self._first: Choice | None = self.drafts[-1].choice
        self._numbers = itertools.count()
        self._waiting: list[Running] = []
        self._num_steps_held = 0
        self._launched: list[tuple[Running, int]] = []
        self.texts: dict[str, Text] = {}
        """By request id."""

    @classmethod
    def clairvoyant(cls, table: CostTable, drafts: Sequence[ModeSettings] = DRAFTS, **options: Any) -> Simulation:
        """Return one that decides as well as can be."""
        simulation = cls(table, drafts=drafts, every_step=True, **options)
        simulation.policy = Clairvoyant(lambda rid: simulation.texts[rid], drafts)
        simulation.__post_init__()
        return simulation

    def add(self, text: Text) -> None:
        """Let a request come."""
        state = RequestState(self._free if self.settings is None else DecodePlan((self.settings,)))
        rid = str(next(self._numbers))
        self._waiting.append(Running(rid, text, text.decode(self.random), state, text.length))
        self.texts[rid] = text

    def keep(self, concurrency: int, texts: Callable[[], Text]) -> None:
        """Let as many requests run: new ones begin, or those that run longest are cut off."""
        del self.requests[: max(len(self.requests) - concurrency, 0)]
        for _ in range(concurrency - len(self.requests) - len(self._waiting)):
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
        before, self._launched = (
            self._launched,
            [(r, r.decoding.forward(r.state.current)) for r in self.requests if r.remaining],
        )
        tokens = sum(min(emitted, r.remaining) for r, emitted in self._launched)
        for request, emitted in before:
            self._take_down(request, emitted)
        for request, emitted in self._launched:
            request.remaining -= min(emitted, request.remaining)
        self.num_steps += 1
        if self.router is not None:
            self.router.observe(shape, ms * self.random.uniform(0.97, 1.03))
        return tokens, ms + prefill_ms

    def _prefill(self) -> float:
        """Let requests that wait begin, unless the last ones have just done so; return the milliseconds of that."""
        if self._num_steps_held and len(self.requests) >= self.prefill_interval.min_rows:
            self._num_steps_held -= 1
            return 0.0
        self._num_steps_held = 0
        if not self._waiting:
            return 0.0
        for request in self._waiting:
            request.state.start_as(self._first)
            request.state.begin(self.num_steps)
        if self.router is not None and self.prefill_ms:
            shape = PrefillShape(len(self._waiting), 40 * len(self._waiting))
            self.router.observe_prefill(shape, self.prefill_ms)
        self.requests += self._waiting
        self._waiting, self._num_steps_held = [], self.prefill_interval.num_steps - 1
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
        known = [self._as_known(request) for request in self.requests]
        decision = router.decide(known, self.num_steps, self.num_decoded)
        if decision is not None:
            self._first = decision.first
            for request in self.requests:
                if request.rid in decision.choices:
                    request.state.go_on_as(decision.choices[request.rid])

    @staticmethod
    def _as_known(request: Running) -> RunningRequest:
        text = request.text
        longest = text.length if text.max_new_tokens is None else text.max_new_tokens
        return RunningRequest(request.rid, request.state, text.num_prompt, longest, longest - request.num_known)

    def _take_down(self, request: Running, emitted: int) -> None:
        """Let the host know what a step emitted."""
        request.state.end_step(emitted)
        used = min(emitted, request.text.length - request.num_known)
        request.num_known += used
        self.num_decoded += used
        if request.num_known == request.text.length:
            request.state.end_answer(used)
            self.requests = [other for other in self.requests if other is not request]


def best_fixed(chances: Sequence[float], table: CostTable) -> float:
    """Return the tokens per millisecond of the best single way for requests that never end, with drafts in turn."""
    num = len(chances)
    rates = [num / table.ms(StepShape(num_decode=num))]
    for drafts in DRAFTS:
        tokens = sum(ChanceText(chance).tokens_per_forward(drafts) for chance in chances)
        rates.append(tokens / table.ms(StepShape(num_blocks=num, width=drafts.block_length)))
    return max(rates)


def curve(points: dict[int, float], max_tokens: int) -> NDArray[np.float64]:
    """Return milliseconds by the number of tokens, between `points` and beyond them."""
    tokens, ms = list(points), list(points.values())
    slope = (ms[-1] - ms[-2]) / (tokens[-1] - tokens[-2])
    every = np.arange(max_tokens + 1)
    return np.where(every > tokens[-1], ms[-1] + slope * (every - tokens[-1]), np.interp(every, tokens, ms))
