"""A request goes on in another mode where a block begins, whatever the host knows of it by then."""

from __future__ import annotations

import torch

from dlm_serve.decoding import (
    AUTOREGRESSIVELY,
    CausalCommit,
    Choice,
    DecodePlan,
    Evidence,
    Mode,
    ModeSettings,
    Phase,
    RequestState,
    Rows,
)
from dlm_serve.decoding.request_state import MOST_EVIDENCE

MASK = 99
AUTOREGRESSIVE = ModeSettings(Mode.AUTOREGRESSIVE, 1)
DRAFTS = ModeSettings(Mode.SELF_SPECULATION, 4, 0.0, 4)
DRAFTS_8 = ModeSettings(Mode.SELF_SPECULATION, 8, 0.0, 8)
SURE_DRAFTS = ModeSettings(Mode.SELF_SPECULATION, 4, 0.9, 4)
COMMIT = CausalCommit()


def state_in(settings: ModeSettings, *others: ModeSettings, step: int = 10) -> RequestState:
    state = RequestState(DecodePlan((settings, *others)))
    state.begin(step)
    return state


def offers(state: RequestState, steps: range) -> list[ModeSettings | None]:
    return [state.offer(step, COMMIT.steps_per_block(state.current)) for step in steps]


def test_one_by_one_every_step_begins_a_block() -> None:
    state = state_in(AUTOREGRESSIVE, DRAFTS)
    state.go_on_as(Choice(Mode.SELF_SPECULATION, 4))
    assert (state.current, state.next_settings) == (AUTOREGRESSIVE, DRAFTS)
    assert offers(state, range(13, 15)) == [DRAFTS, None]
    assert (state.current, state.num_switches, state.wants_switch) == (DRAFTS, 1, False)


def test_drafts_of_one_forward_are_verified_first() -> None:
    """Blocks began at steps 10 and 12: an offer before step 13 would come between a draft and its verification."""
    state = state_in(DRAFTS, AUTOREGRESSIVE)
    state.go_on_as(None)
    assert offers(state, range(13, 16)) == [None, AUTOREGRESSIVE, None]
    assert state.current is AUTOREGRESSIVE
    state.go_on_as(Choice(Mode.SELF_SPECULATION, 4))
    assert offers(state, range(15, 16)) == [DRAFTS]
    state.go_on_as(None)
    assert offers(state, range(16, 18)) == [None, AUTOREGRESSIVE]


def test_where_blocks_take_any_number_of_steps_the_offer_stands_until_one_is_known_to_have_ended() -> None:
    """Results come a step late. The row is planned for both until then."""
    state = state_in(SURE_DRAFTS, AUTOREGRESSIVE, step=0)
    emitted = [0, 0, 3]
    seen = []
    state.go_on_as(None)  # when step 0 is launched already
    for step in range(1, 5):
        if step >= 2:
            state.end_step(emitted[step - 2])
        seen.append((state.offer(step, COMMIT.steps_per_block(state.current)), state.current, state.row_length))
    # Step 2 emitted, which is known before step 4.
    assert seen == [(AUTOREGRESSIVE, SURE_DRAFTS, 4)] * 3 + [(AUTOREGRESSIVE, AUTOREGRESSIVE, 1)]


def test_where_results_come_at_once_the_last_offer_is_the_one_that_is_taken() -> None:
    """The block ends with step 1, which is known before step 2: then there is still no row that took it."""
    state = state_in(SURE_DRAFTS, AUTOREGRESSIVE, step=0)
    state.end_step(0)
    state.go_on_as(None)
    assert state.offer(1, None) is AUTOREGRESSIVE
    state.end_step(3)
    assert state.offer(2, None) is AUTOREGRESSIVE
    assert (state.current, state.wants_switch) == (AUTOREGRESSIVE, False)


def test_blocks_of_two_steps_are_counted_from_where_the_row_took_the_offer() -> None:
    state = state_in(SURE_DRAFTS, DRAFTS_8, AUTOREGRESSIVE, step=0)
    state.go_on_as(Choice(Mode.SELF_SPECULATION, 8))
    state.offer(0, None)
    for num_emitted in (0, 2):
        state.end_step(num_emitted)
    assert state.offer(3, None) is DRAFTS_8  # the row took it before step 2, and verifies in step 3
    state.go_on_as(None)
    assert offers(state, range(4, 6)) == [AUTOREGRESSIVE, None]


def test_steps_in_flight_count_for_the_mode_they_were_launched_in() -> None:
    state = state_in(DRAFTS, AUTOREGRESSIVE, step=0)
    state.go_on_as(None)
    state.offer(2, 2)
    for num_emitted in (0, 3, 1, 1):
        state.end_step(num_emitted)
    tallies = {choice: (tally.num_tokens, dict(tally.blocks)) for choice, tally in state.tallies.items()}
    assert tallies == {Choice(Mode.SELF_SPECULATION, 4): (3, {(3, 2, True): 1}), AUTOREGRESSIVELY: (2, {})}
    assert (state.acceptance_length, len(state.evidence)) == (3.0, 1)


def test_the_last_block_is_evidence_of_what_the_answer_took_of_it() -> None:
    state = state_in(DRAFTS, AUTOREGRESSIVE)
    for num_emitted in (0, 4):
        state.end_step(num_emitted)
    state.end_answer(2)
    assert list(state.evidence) == [Evidence(Choice(Mode.SELF_SPECULATION, 4), 2, 2, True)]


def test_a_request_keeps_its_last_blocks_as_evidence() -> None:
    state = state_in(DRAFTS, AUTOREGRESSIVE)
    for block in range(MOST_EVIDENCE + 3):
        state.end_step(0)
        state.end_step(1 + block % 4)
    kept = [1 + block % 4 for block in range(3, MOST_EVIDENCE + 3)]
    assert [block.num_emitted for block in state.evidence] == kept


def test_evidence_says_whether_a_forward_verified_a_draft() -> None:
    """The first of a row that verifies and drafts at once has none, also where the answer ends in it."""
    speculates = ModeSettings(Mode.SELF_SPECULATION, 32, 0.0, budget=64)
    state = state_in(speculates, AUTOREGRESSIVE)
    state.end_step(1)
    state.end_answer(1)
    state.end_step(5)
    assert list(state.evidence) == [
        Evidence(speculates.choice, 1, 1, is_cut=True, has_draft=False),
        Evidence(speculates.choice, 5, 1),
    ]


def test_what_is_decided_again_before_the_offer_replaces_it_and_behind_it_follows() -> None:
    state = state_in(DRAFTS, AUTOREGRESSIVE)
    state.go_on_as(None)
    state.go_on_as(Choice(Mode.SELF_SPECULATION, 4))
    assert not state.wants_switch
    other = state_in(SURE_DRAFTS, AUTOREGRESSIVE, step=0)
    other.go_on_as(None)
    other.offer(0, None)
    other.go_on_as(Choice(Mode.SELF_SPECULATION, 4))
    assert other.next_settings is SURE_DRAFTS
    other.end_step(2)
    assert other.offer(1, None) is AUTOREGRESSIVE
    assert (other.current, other.wants_switch) == (AUTOREGRESSIVE, True)


def test_an_extend_call_begins_anew() -> None:
    state = state_in(DRAFTS, AUTOREGRESSIVE)
    state.go_on_as(None)
    state.begin(20)
    assert (state.current, state.wants_switch) == (DRAFTS, False)
    state.start_as(None)
    assert (state.current, state.num_switches) == (AUTOREGRESSIVE, 0)
    pinned = state_in(DRAFTS)
    pinned.start_as(None)
    pinned.go_on_as(None)
    assert (pinned.current, pinned.wants_switch) == (DRAFTS, False)


def rows_of(*settings: ModeSettings) -> Rows:
    return Rows.of([COMMIT.row_options(s, 7, [1], 100) for s in settings], width=4)


def test_rows_take_an_offer_where_a_block_begins_and_nowhere_else() -> None:
    """Rows 1 and 3 stand at the start of a block, 2 between a draft and its verification."""
    table = Rows.table(4, 4, MASK, "cpu")
    begun = rows_of(DRAFTS, DRAFTS, AUTOREGRESSIVE).start_block(torch.tensor([11, 12, 13]), MASK)
    drafted = begun.replace(
        phase=torch.tensor([Phase.DRAFT, Phase.VERIFY, Phase.DECODE], dtype=torch.int32),
        step=torch.tensor([0, 1, 0], dtype=torch.int32),
    )
    indices = torch.tensor([1, 2, 3])
    table.scatter_(indices, drafted)
    table.offer_(indices, rows_of(AUTOREGRESSIVE, AUTOREGRESSIVE, DRAFTS), MASK)
    after = table.gather(indices)
    assert after.phase.tolist() == [Phase.DECODE, Phase.VERIFY, Phase.DRAFT]
    assert after.block_length.tolist() == [1, 4, 4]
    assert after.new_len.tolist() == [1, 4, 4]
    assert after.tokens.tolist() == [[11, *[MASK] * 3], drafted.tokens[1].tolist(), [13, *[MASK] * 3]]
    again = table.gather(torch.tensor([0]))
    table.offer_(indices[:1], rows_of(AUTOREGRESSIVE), MASK)
    assert table.gather(indices[:1]).tokens.tolist() == [[11, *[MASK] * 3]]
    assert table.gather(torch.tensor([0])).phase.tolist() == again.phase.tolist()
