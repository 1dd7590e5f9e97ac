"""Count what becomes of one request, from the same numbers as its statistics, at the moment they become known."""

from __future__ import annotations

from dlm_serve.decoding import Commit, Mode, Phase, RequestState
from dlm_serve.metrics import registry
from dlm_serve.metrics.counts import Counts
from dlm_serve.metrics.registry import Outcome


class Meter:
    """Counts a request; what it has counted already, it remembers."""

    def __init__(self) -> None:
        self._num_forwards = 0
        self._num_denoised = 0
        """Denoising forwards over the block that is not emitted yet."""
        self._is_settled = False
        """Whether its block is denoised: by an EXTEND call, or by the last step, which emitted it."""

    def count_extend(self, counts: Counts, state: RequestState) -> None:
        """Count an EXTEND call, whose forwards over blocks all denoise."""
        number = self._new_forwards(state)
        self._is_settled, self._num_denoised = True, 0
        if number:
            mode = state.last_settings.mode
            counts.add(registry.FORWARD_PASSES, mode, Phase.DENOISE.label, by=number)
            counts.observe(registry.DENOISE_STEPS, number, mode)

    def count_step(self, counts: Counts, state: RequestState, commit: Commit) -> None:
        """Count a decode step that `state` has just been told of."""
        num_emitted, settings = state.last_emitted, state.last_settings
        if self._new_forwards(state):  # none where it only flushes
            phase = commit.phase_of(settings, self._is_settled, num_emitted)
            counts.add(registry.FORWARD_PASSES, settings.mode, phase.label)
            self._num_denoised += phase in (Phase.DENOISE, Phase.DRAFT)
            self._is_settled = phase is Phase.DENOISE and num_emitted > 0
        if num_emitted:
            if settings.mode is Mode.SELF_SPECULATION:
                counts.observe(registry.ACCEPTANCE_LENGTH, num_emitted)
            if self._num_denoised:
                counts.observe(registry.DENOISE_STEPS, self._num_denoised, settings.mode)
            self._num_denoised = 0

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
        if state.nfe:
            counts.observe(registry.TOKENS_PER_FORWARD, state.num_tokens / state.nfe, mode)

    def _new_forwards(self, state: RequestState) -> int:
        number = state.nfe - self._num_forwards
        self._num_forwards = state.nfe
        return number
