"""What the host counts of a request."""

from __future__ import annotations

import pytest

from dlm_serve.decoding import DecodePlan, Mode, ModeSettings, RequestState, Tally


def state_in(mode: Mode) -> RequestState:
    return RequestState(DecodePlan((ModeSettings(mode, 4),)), stop_ids=frozenset({7}))  # type: ignore[arg-type]


def test_it_starts_with_the_first_mode_permitted() -> None:
    settings = (ModeSettings(Mode.SELF_SPECULATION, 8, 0.0, 8), ModeSettings(Mode.AUTOREGRESSIVE, 1))
    assert RequestState(DecodePlan(settings)).current is settings[0]


def test_steps_and_forwards_are_counted() -> None:
    state = state_in(Mode.SELF_SPECULATION)
    assert (state.nfe, state.acceptance_length) == (0, None)
    state.num_extend_forwards = 2
    for num_emitted in (0, 3, 0, 2):
        state.end_step(num_emitted)
    assert (state.num_steps, state.last_emitted) == (4, 2)
    assert state.tallies == {(Mode.SELF_SPECULATION, 4): Tally(num_steps=4, num_emitting_steps=2, num_emitted=5)}
    assert (state.nfe, state.acceptance_length) == (6, 2.5)


@pytest.mark.parametrize("mode", [Mode.DIFFUSION, Mode.AUTOREGRESSIVE])
def test_only_drafts_have_an_acceptance_length(mode: Mode) -> None:
    state = state_in(mode)
    state.end_step(3)
    assert state.acceptance_length is None


@pytest.mark.parametrize(
    ("rest", "num_left", "decides"), [([1, 2], 3, False), ([1, 2], 2, True), ([1, 7], 9, True), ([], 1, False)]
)
def test_steps_that_only_flush_are_no_forwards(rest: list[int], num_left: int, decides: bool) -> None:
    state = state_in(Mode.DIFFUSION)
    state.num_extend_forwards = 3
    state.end_step(1)
    state.end_extend(rest, num_left)
    state.end_step(1)
    assert (state.is_decided, state.nfe) == (decides, 4 if decides else 5)
