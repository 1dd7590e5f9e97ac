"""Add up what requests tally of themselves, so that what it means is worked out once for all of them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from dlm_serve.decoding import BlockRecord, Choice, Commit, Mode, ModeSettings, Phase, RequestState
from dlm_serve.metrics import registry
from dlm_serve.metrics.counts import Counts
from dlm_serve.metrics.registry import PHASE_LABELS


@dataclass
class Blocks:
    """Blocks of one way to decode, whose forwards do the same."""

    settings: ModeSettings
    """Of one request among them."""
    times: defaultdict[BlockRecord, int] = field(default_factory=lambda: defaultdict(int))
    """How often there was such a block."""

    def count(self, counts: Counts, commit: Commit) -> None:
        """Count their forwards, and what each is of."""
        for (num_emitted, number, is_first), times in self.times.items():
            phases = commit.phases_of(self.settings, number, not is_first, num_emitted > 0)
            self._count(counts, phases, num_emitted, times)

    def _count(self, counts: Counts, phases: dict[Phase, int], num_emitted: int, times: int) -> None:
        """Count a block that took the forwards `phases` and occurred so many `times`."""
        mode = self.settings.mode
        for phase, number in phases.items():
            if number:
                counts.add(registry.FORWARD_PASSES, mode, PHASE_LABELS[phase], by=number * times)
        if not num_emitted:
            return
        if mode is Mode.SELF_SPECULATION:
            counts.observe(registry.ACCEPTANCE_LENGTH, num_emitted, times=times)
        num_denoised = phases.get(Phase.DENOISE, 0) + phases.get(Phase.DRAFT, 0)
        if num_denoised:
            counts.observe(registry.DENOISE_STEPS, num_denoised, mode, times=times)


@dataclass
class Sums:
    """What many requests have tallied."""

    num_steps: int = 0
    """Steps, but for those of blocks that are neither emitted nor lost."""
    blocks: dict[tuple[Mode, str | None, bool], Blocks] = field(default_factory=dict)
    """By mode, algorithm and whether drafting and verifying take turns."""
    tokens: defaultdict[Mode, int] = field(default_factory=lambda: defaultdict(int))
    """Tokens of answers."""
    switches: defaultdict[tuple[Mode, Mode], int] = field(default_factory=lambda: defaultdict(int))
    """How often requests went on in another mode or block length, by the modes before and after."""

    def copy(self) -> Sums:
        """Return the same, to add to."""
        blocks = {key: Blocks(found.settings, found.times.copy()) for key, found in self.blocks.items()}
        return Sums(self.num_steps, blocks, self.tokens.copy(), self.switches.copy())

    def add(self, state: RequestState, with_tokens: bool = True) -> None:
        """Add a request, with the tokens of its answer or without."""
        self.num_steps += state.num_steps - state.num_unfinished
        for switch, times in state.switches.items():
            self.switches[switch] += times
        for choice, tally in state.tallies.items():
            if with_tokens:
                self.tokens[choice.mode] += tally.num_tokens
            if tally.blocks:
                blocks = self._blocks_of(state, choice)
                for record, times in tally.blocks.items():
                    blocks[record] += times

    def count(self, counts: Counts, commit: Commit) -> None:
        """Count all that was added. A step that is of no block decoded a single token."""
        num_singles = self.num_steps
        for blocks in self.blocks.values():
            blocks.count(counts, commit)
            num_singles -= sum(number * times for (_, number, _), times in blocks.times.items())
        if num_singles:
            counts.add(registry.FORWARD_PASSES, Mode.AUTOREGRESSIVE, PHASE_LABELS[Phase.DECODE], by=num_singles)
        for mode, number in self.tokens.items():
            counts.add(registry.TOKENS, mode, by=number)
        for (before, after), number in self.switches.items():
            counts.add(registry.MODE_SWITCHES, before, after, by=number)

    def _blocks_of(self, state: RequestState, choice: Choice) -> defaultdict[BlockRecord, int]:
        settings = state.settings_of(choice)
        assert settings is not None
        key = settings.mode, settings.algorithm, settings.budget is None
        found = self.blocks.get(key)
        if found is None:
            found = self.blocks[key] = Blocks(settings)
        return found.times
