"""How a request may decode, resolved before it is queued."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from dlm_serve.decoding.logit_rules import NO_RULES, LogitRules
from dlm_serve.decoding.modes import ConcreteMode, Mode
from dlm_serve.decoding.stop_rules import StopRule


class Choice(NamedTuple):
    """What tells the settings that a request permits apart."""

    mode: ConcreteMode
    block_length: int = 1
    budget: int | None = None
    """Tokens of a row that self-speculates in one forward; None for any other."""

    @property
    def row_length(self) -> int:
        """Return the tokens with which a row enters a forward, in families whose rows are single blocks."""
        return self.block_length if self.budget is None else self.budget


AUTOREGRESSIVELY = Choice(Mode.AUTOREGRESSIVE)


def name_of(choice: Choice) -> str:
    """Return a choice as answers and reports name it: `self_speculation/8`, or `self_speculation/one_forward/64`."""
    if choice.mode is Mode.AUTOREGRESSIVE:
        return str(choice.mode)
    return f"{choice.mode}/{choice.block_length if choice.budget is None else f'one_forward/{choice.budget}'}"


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
    budget: int | None = None
    """Tokens of a row that verifies its draft and drafts the next in one forward; None drafts and verifies in turn."""

    @property
    def choice(self) -> Choice:
        """Return what tells it from others."""
        return Choice(self.mode, self.block_length, self.budget)


@dataclass(frozen=True)
class DecodePlan:
    """The modes in which a request may decode, each with its settings; what ends it, and what it does to its logits."""

    permitted: tuple[ModeSettings, ...]
    """At least one; a request starts with the first."""
    stop_rule: StopRule = StopRule.EOS
    logit_rules: LogitRules = NO_RULES
    keeps_history: bool = False
    """Whether its blocks are kept as they were after each forward."""

    def __post_init__(self) -> None:
        if not self.permitted:
            raise ValueError("a plan permits at least one mode")

    @cached_property
    def is_free(self) -> bool:
        """Return whether it permits decoding both autoregressively and by blocks."""
        return len({settings.mode is Mode.AUTOREGRESSIVE for settings in self.permitted}) == 2

    @property
    def may_shrink(self) -> bool:
        """Return whether tokens of an answer that has not ended may be taken back."""
        return self.stop_rule is StopRule.UPSTREAM

    def settings_of(self, choice: Choice) -> ModeSettings | None:
        """Return the permitted settings of this mode and block length; None if there are none."""
        return self._by_choice.get(choice)

    @cached_property
    def _by_choice(self) -> dict[Choice, ModeSettings]:
        return {settings.choice: settings for settings in self.permitted}
