"""What the host knows about a request: how it decodes now and next, and what has become of it so far.

What changes with every forward is on the device, in `rows.Rows`. Steps of a request are numbered from 0 as they are
launched; when one is launched, the results of the one before may not be known yet.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from dlm_serve.decoding.decode_plan import AUTOREGRESSIVELY, Choice, DecodePlan, ModeSettings
from dlm_serve.decoding.history import BlockHistory
from dlm_serve.decoding.modes import Mode


class Evidence(NamedTuple):
    """A finished block, as the router learns from it."""

    choice: Choice
    num_emitted: int
    num_forwards: int
    is_cut: bool = False
    """Whether the answer ended in it, so that it might have emitted more."""
    has_draft: bool = True
    """Whether a draft was verified; the first forward of an answer has none where it drafts and verifies at once."""


MOST_EVIDENCE = 8
"""Blocks of a request that are kept until the router reads them, which on all ranks but the first it never does. Where
it reads them seldom, because there are many requests, some of each are enough."""

BlockRecord = tuple[int, int, bool]
"""A block: the tokens that it emitted, 0 if it was lost; its forwards, the commit of the block before included; and
whether no block was emitted since the last EXTEND call."""


@dataclass
class Tally:
    """What a request did in one mode and block length."""

    num_tokens: int = 0
    """Tokens of the answer that were decided so."""
    blocks: defaultdict[BlockRecord, int] = field(default_factory=lambda: defaultdict(int))
    """How often it had such a block; tokens that were decoded one by one are none."""


@dataclass(eq=False)
class RequestState:
    """A request on the host."""

    plan: DecodePlan
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    """Ids that end the request; never the mask, which stands in unfinished blocks."""
    is_streaming: bool = False
    current: ModeSettings = field(init=False)
    """The settings with which its next step is planned, one of those permitted."""
    num_steps: int = 0
    """Decode steps whose results are known, each a forward over a block, windows or a single token of it."""
    tallies: dict[Choice, Tally] = field(default_factory=dict)
    """What it did, by mode and block length."""
    last_emitted: int = 0
    """Tokens that the last decode step emitted."""
    switches: defaultdict[tuple[Mode, Mode], int] = field(default_factory=lambda: defaultdict(int))
    """How often it went on in another mode or block length, by the modes before and after."""
    evidence: deque[Evidence] = field(default_factory=lambda: deque(maxlen=MOST_EVIDENCE))
    """The last finished blocks that the router has not read yet; kept of free requests alone."""
    history: BlockHistory | None = field(init=False)
    """Its blocks after each forward, where it asked for them."""
    _wanted: ModeSettings | None = None
    """The settings to go on with at the next block."""
    _wanted_then: ModeSettings | None = None
    """The settings to go on with behind those, which are offered already."""
    _first_offer: int | None = None
    """The step before which the device was first told of `_wanted`; None if it was not."""
    _last_emitting: int = -1
    """The last step known to have emitted."""
    _offset: int = 0
    """The number of its first step, as the engine counts steps."""
    _block_start: int = 0
    """A step at which a block began, where all blocks take the same number of steps."""
    _counted: ModeSettings = field(init=False)
    """The settings of the first step whose result is not known."""
    _tally: Tally | None = None
    """The tally of those settings; None until there is something to count."""
    _later: deque[tuple[int, ModeSettings]] = field(default_factory=deque)
    """Settings of later steps, each with the first of them."""
    _forwards: int = 0
    """Steps since the last that emitted."""
    _run_start: int = 0
    """The first step behind the last EXTEND call."""

    def __post_init__(self) -> None:
        self.current = self._counted = self.plan.permitted[0]
        self.history = BlockHistory() if self.plan.keeps_history else None

    @property
    def is_free(self) -> bool:
        """Return whether it may decode autoregressively or by blocks."""
        return self.plan.is_free

    @property
    def row_length(self) -> int:
        """Return the most tokens of its row in the next step, which may have begun with other settings by then."""
        return max(settings.choice.row_length for settings in self._may_be_in_force)

    @property
    def least_row_length(self) -> int:
        """Return the fewest tokens that will do for its row: one that speculates in one forward takes any number."""
        return max(1 if settings.budget else settings.block_length for settings in self._may_be_in_force)

    @property
    def _may_be_in_force(self) -> tuple[ModeSettings, ...]:
        """Return the settings that the device may have for it: its own, and those that it was offered."""
        return (self.current,) if self._wanted is None or self._first_offer is None else (self.current, self._wanted)

    @property
    def acceptance_length(self) -> float | None:
        """Return the mean number of tokens a verification emitted; None without any."""
        drafted = [tally.blocks for choice, tally in self.tallies.items() if choice.mode is Mode.SELF_SPECULATION]
        verified = [(record[0], times) for blocks in drafted for record, times in blocks.items() if record[0]]
        num_verified = sum(times for _, times in verified)
        return sum(number * times for number, times in verified) / num_verified if num_verified else None

    @property
    def num_tokens(self) -> int:
        """Return how many tokens its answer has, those of the last step behind its end included until it has ended."""
        return sum(tally.num_tokens for tally in self.tallies.values())

    @property
    def num_unfinished(self) -> int:
        """Return how many of its steps belong to a block that is neither emitted nor lost."""
        return self._forwards

    @property
    def num_switches(self) -> int:
        """Return how many times it went on in another mode or block length."""
        return sum(self.switches.values())

    def settings_of(self, choice: Choice) -> ModeSettings | None:
        """Return the permitted settings of this mode and block length; None if there are none."""
        return self.plan.settings_of(choice)

    # Switching.

    def begin(self, step: int) -> None:
        """Note that its next decode step is the engine's `step`, and that a block begins there: an EXTEND call ran."""
        self._lose_block()
        self._offset = step - self.num_steps
        self._block_start = self._run_start = self.num_steps
        self._last_emitting = self.num_steps - 1
        self._wanted = self._wanted_then = self._first_offer = None
        self._later.clear()
        if self.history is not None:
            self.history.restart()
        self._counted, self._tally = self.current, None

    def start_as(self, choice: Choice | None) -> None:
        """Begin, where the plan leaves it open, with this choice, or autoregressively where None."""
        if self.is_free:
            self.current = self.settings_of(choice or AUTOREGRESSIVELY) or self.current

    def go_on_as(self, choice: Choice | None) -> None:
        """Go on with this choice, or autoregressively where None, at the next block.

        If other settings are offered for that already, at the one behind it. What the plan does not permit is ignored.
        """
        settings = self.settings_of(choice or AUTOREGRESSIVELY)
        if settings is None:
            return
        if self._first_offer is None:
            self._wanted = None if settings == self.current else settings
        else:
            self._wanted_then = settings

    @property
    def next_settings(self) -> ModeSettings:
        """Return the settings with which it goes on at the next block."""
        return self._wanted_then or self._wanted or self.current

    @property
    def wants_switch(self) -> bool:
        """Return whether it has yet to go on with other settings."""
        return self._wanted is not None

    def offer(self, step: int, steps_per_block: int | None) -> ModeSettings | None:
        """Return the settings to offer to the device before the engine's `step`; None if there are none.

        The device takes an offer where a block begins. Where all blocks take `steps_per_block` steps that is known
        here, and the offer is made then. Elsewhere it is repeated until a step is known to have emitted behind which
        it was made; until then a row may have taken it already, and is planned for either.
        """
        wanted, number = self._wanted, step - self._offset
        if wanted is None:
            return None
        if steps_per_block is not None:
            if (number - self._block_start) % steps_per_block:
                return None
            self._take(wanted, number, block_start=number)
        elif self._first_offer is None:
            self._first_offer = number
        elif self._last_emitting >= self._first_offer - 1:
            # Results may be known up to the step before, so that a block begins only now: this offer counts, too.
            self._take(wanted, number, block_start=self._last_emitting + 1)
        return wanted

    def _take(self, settings: ModeSettings, number: int, block_start: int) -> None:
        self.switches[self.current.mode, settings.mode] += 1
        self.current, self._block_start = settings, block_start
        self._wanted = self._wanted_then if self._wanted_then != settings else None
        self._wanted_then = self._first_offer = None
        self._later.append((number, settings))

    def may_emit(self, step: int, steps_per_block: int | None) -> bool:
        """Return whether the engine's `step` may emit tokens of it: not where it is known to draft a block then.

        `steps_per_block` is what all its blocks take; None if that depends on the tokens.
        """
        return steps_per_block is None or (step - self._offset - self._block_start + 1) % steps_per_block == 0

    # Results.

    def end_step(self, num_emitted: int) -> None:
        """Count a decode step that emitted `num_emitted` tokens."""
        while self._later and self._later[0][0] <= self.num_steps:
            self._counted, self._tally = self._later.popleft()[1], None
        self._forwards += 1
        if num_emitted:
            counted, is_first = self._counted, self._tally is None
            tally = self._current_tally()
            tally.num_tokens += num_emitted
            if counted.mode is not Mode.AUTOREGRESSIVE:
                tally.blocks[num_emitted, self._forwards, self._is_first] += 1
                has_draft = not (is_first and counted.budget is not None)
                if self.plan.is_free and (has_draft or self._is_first):  # what a change of ways costs is no evidence
                    self.evidence.append(Evidence(counted.choice, num_emitted, self._forwards, has_draft=has_draft))
            self._last_emitting, self._forwards = self.num_steps, 0
        self.num_steps += 1
        self.last_emitted = num_emitted

    def _current_tally(self) -> Tally:
        tally = self._tally
        if tally is None:
            tally = self._tally = self.tallies.setdefault(self._counted.choice, Tally())
        return tally

    @property
    def _is_first(self) -> bool:
        """Return whether no block was emitted since the last EXTEND call."""
        return self._last_emitting < self._run_start

    def _lose_block(self) -> None:
        """Count the steps since the last that emitted as a block that comes to nothing."""
        if self._forwards:
            self._current_tally().blocks[0, self._forwards, self._is_first] += 1
            self._forwards = 0

    def end_answer(self, num_used: int) -> None:
        """Note that of what the last step emitted only the first `num_used` tokens belong to the answer."""
        is_block = self._counted.mode is not Mode.AUTOREGRESSIVE and self._last_emitting == self.num_steps - 1
        if is_block and self.evidence and self.evidence[-1].choice == self._counted.choice:
            self.evidence[-1] = self.evidence[-1]._replace(num_emitted=num_used, is_cut=True)

    def note_answer(self, length: int) -> None:
        """Note that the answer has `length` tokens: what steps did not emit is an EXTEND call's, or behind its end."""
        behind = length - self.num_tokens
        if behind:
            self._current_tally().num_tokens += behind

    def end(self, length: int) -> None:
        """Note that it has ended, with an answer of `length` tokens."""
        self._lose_block()
        self.note_answer(length)
