"""Count what becomes of one request, from the same numbers as its statistics, at the moment they become known."""

from __future__ import annotations

from dlm_serve.decoding import Commit, Mode, Phase, RequestState
from dlm_serve.metrics import registry
from dlm_serve.metrics.counts import Counts
from dlm_serve.metrics.registry import PHASE_LABELS, Outcome


class Meter:
    """Counts a request, a block at a time; what it has counted already, it remembers."""

    def __init__(self) -> None:
        self._num_steps = 0
        """Decode steps that are counted."""
        self._is_settled = False
        """Whether its block was denoised before the forwards that are not counted yet."""

    def count_extend(self, counts: Counts, state: RequestState, commit: Commit) -> None:
        """Count steps that led to nothing before an EXTEND call, behind which a block begins."""
        self._count_steps(counts, state, commit, emits=False)
        self._is_settled = False

    def count_block(self, counts: Counts, state: RequestState, commit: Commit) -> None:
        """Count the steps up to the last one known, which has emitted or was the request's last."""
        num_emitted, mode = state.last_emitted, state.last_settings.mode
        phases = self._count_steps(counts, state, commit, emits=num_emitted > 0)
        if not phases or not num_emitted or mode is Mode.AUTOREGRESSIVE:
            return
        if mode is Mode.SELF_SPECULATION:
            counts.observe(registry.ACCEPTANCE_LENGTH, num_emitted)
        num_denoised = phases.get(Phase.DENOISE, 0) + phases.get(Phase.DRAFT, 0)
        if num_denoised:
            counts.observe(registry.DENOISE_STEPS, num_denoised, mode)
        self._is_settled = num_denoised > 0

    def _count_steps(self, counts: Counts, state: RequestState, commit: Commit, emits: bool) -> dict[Phase, int]:
        """Count the forwards of steps since the last call, of which the last `emits`; return their phases."""
        settings = state.last_settings
        number, self._num_steps = state.num_steps - self._num_steps, state.num_steps
        phases = commit.phases_of(settings, number, self._is_settled, emits) if number else {}
        for phase, times in phases.items():
            if times:
                counts.add(registry.FORWARD_PASSES, settings.mode, PHASE_LABELS[phase], by=times)
        return phases

    def count_answer(self, counts: Counts, state: RequestState, length: int) -> int:
        """Count what is new of an answer of `length` tokens, and switches; return the number of new tokens."""
        number = state.note_answer(length)
        if number:
            counts.add(registry.TOKENS, state.last_settings.mode, by=number)
        for before, after in state.take_switches():
            counts.add(registry.MODE_SWITCHES, before, after)
        return number

    def count_end(self, counts: Counts, state: RequestState, outcome: Outcome) -> None:
        """Count a request that has ended."""
        mode = state.current.mode
        counts.add(registry.REQUESTS, mode, outcome)
        if state.num_steps:
            counts.observe(registry.TOKENS_PER_FORWARD, state.num_tokens / state.num_steps, mode)
