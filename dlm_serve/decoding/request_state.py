"""What the host knows about a request: how it may decode, and what has become of it so far.

What changes with every forward is on the device, in `rows.Rows`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dlm_serve.decoding.modes import ConcreteMode, Mode
from dlm_serve.decoding.stop_rules import StopRule


@dataclass(frozen=True)
class ModeSettings:
    """How a request decodes in one mode, with nothing left open."""

    mode: ConcreteMode
    block_length: int
    threshold: float | None = None
    """Confidence at which tokens are fixed; None is the fixed schedule of `steps`."""
    steps: int = 1
    convergence_threshold: float | None = None
    """Nats; None never stops denoising early."""
    algorithm: str | None = None
    """One of the family's, None where it has no choice."""


@dataclass(frozen=True)
class DecodePlan:
    """The modes in which a request may decode, each with its settings, and what ends it."""

    permitted: tuple[ModeSettings, ...]
    """At least one; a request starts with the first."""
    stop_rule: StopRule = StopRule.EOS

    def __post_init__(self) -> None:
        if not self.permitted:
            raise ValueError("a plan permits at least one mode")


@dataclass
class RequestState:
    """A request on the host."""

    plan: DecodePlan
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    """Ids that end the request; never the mask, which stands in unfinished blocks."""
    is_greedy: bool = True
    current: ModeSettings = field(init=False)
    """The settings it decodes with now, one of those permitted."""
    num_steps: int = 0
    """Decode steps it took part in."""
    num_emitting_steps: int = 0
    num_emitted: int = 0
    """Tokens that its decode steps emitted."""
    last_emitted: int = 0
    """Tokens that the last decode step emitted."""
    num_extend_forwards: int = 0
    """Forwards over its blocks inside EXTEND calls."""
    first_run: range = range(0)
    """Positions of the anchor of the window that the last EXTEND call ran, and of all accepted tokens but the last."""
    is_extended: bool = False
    """Whether what the last EXTEND call decided has no KV yet."""
    steps_before_flush: int | None = None
    """Steps it had taken when an EXTEND call decided all that was left of its answer; None if none did."""

    def __post_init__(self) -> None:
        self.current = self.plan.permitted[0]

    @property
    def is_decided(self) -> bool:
        """Return whether its steps only flush what an EXTEND call decided, and run no forward."""
        return self.steps_before_flush is not None

    @property
    def is_sampled(self) -> bool:
        """Return whether the tokens of its blocks are sampled. Autoregressive rows are left to SGLang's sampler."""
        return not self.is_greedy and self.current.mode is not Mode.AUTOREGRESSIVE

    @property
    def nfe(self) -> int:
        """Return the number of forwards over its blocks, windows or single tokens so far."""
        return self.num_extend_forwards + (
            self.num_steps if self.steps_before_flush is None else self.steps_before_flush
        )

    @property
    def acceptance_length(self) -> float | None:
        """Return the mean number of tokens a verification emitted; None without any."""
        if self.current.mode is not Mode.SELF_SPECULATION or not self.num_emitting_steps:
            return None
        return self.num_emitted / self.num_emitting_steps

    def end_step(self, num_emitted: int) -> None:
        """Count a decode step that emitted `num_emitted` tokens."""
        self.num_steps += 1
        self.num_emitting_steps += num_emitted > 0
        self.num_emitted += num_emitted
        self.last_emitted = num_emitted

    def end_extend(self, rest: list[int], num_left: int) -> None:
        """Note that an EXTEND call left the tokens `rest` to emit, where at most `num_left` more are wanted."""
        ends = len(rest) >= num_left or not self.stop_ids.isdisjoint(rest)
        self.steps_before_flush = self.num_steps if ends else None
