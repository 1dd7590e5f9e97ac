"""What the host counts of a request."""

from __future__ import annotations

from collections import defaultdict

import pytest

from dlm_serve.decoding import Choice, DecodePlan, Mode, ModeSettings, RequestState, Tally


def state_in(mode: Mode) -> RequestState:
    return RequestState(DecodePlan((ModeSettings(mode, 4),)), stop_ids=frozenset({7}))  # type: ignore[arg-type]


def test_it_starts_with_the_first_mode_permitted() -> None:
    settings = (ModeSettings(Mode.SELF_SPECULATION, 8, 0.0, 8), ModeSettings(Mode.AUTOREGRESSIVE, 1))
    assert RequestState(DecodePlan(settings)).current is settings[0]


def test_steps_are_counted() -> None:
    state = state_in(Mode.SELF_SPECULATION)
    assert (state.num_steps, state.acceptance_length) == (0, None)
    for num_emitted in (0, 3, 0, 2):
        state.end_step(num_emitted)
    assert (state.num_steps, state.last_emitted) == (4, 2)
    blocks = defaultdict(int, {(3, 2, True): 1, (2, 2, False): 1})
    assert state.tallies == {Choice(Mode.SELF_SPECULATION, 4): Tally(5, blocks)}
    assert state.acceptance_length == 2.5


@pytest.mark.parametrize("mode", [Mode.DIFFUSION, Mode.AUTOREGRESSIVE])
def test_only_drafts_have_an_acceptance_length(mode: Mode) -> None:
    state = state_in(mode)
    state.end_step(3)
    assert state.acceptance_length is None
