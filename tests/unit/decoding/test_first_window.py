"""Which window an EXTEND call starts with: behind all tokens, or, of a run that was emitted in part, the same again."""

from __future__ import annotations

import pytest

from dlm_serve.decoding import DecodePlan, FirstBlock, Mode, ModeSettings, RequestState, WindowCommit

COMMIT, NUM_PROMPT = WindowCommit(), 5


def request(first_run: range, algorithm: str = "prob_conf", last_emitted: int = 0) -> RequestState:
    """A request in a mode of its own where there is no algorithm."""
    threshold = 0.9 if algorithm == "prob_conf" else None
    settings = ModeSettings(Mode.DIFFUSION, 4, threshold, algorithm=algorithm)
    if not algorithm:
        settings = ModeSettings(Mode.AUTOREGRESSIVE, 1)
    return RequestState(DecodePlan((settings,)), first_run=first_run, last_emitted=last_emitted)


@pytest.mark.parametrize(
    ("num_output", "first_run", "algorithm", "anchor"),
    [
        (0, range(0), "prob_conf", 4),
        (1, range(4, 7), "prob_conf", 4),
        (2, range(4, 7), "prob_conf", 4),
        (3, range(4, 7), "prob_conf", 7),
        (9, range(4, 7), "prob_conf", 13),
        (1, range(4, 5), "prob_conf", 5),
        (1, range(4, 7), "self_speculative", 5),
    ],
    ids=["new", "one of three", "two of three", "three of three", "later", "one of one", "a draft"],
)
def test_the_first_window(num_output: int, first_run: range, algorithm: str, anchor: int) -> None:
    found = COMMIT.first_block(request(first_run, algorithm), list(range(NUM_PROMPT + num_output)), NUM_PROMPT)
    assert found == FirstBlock(anchor, list(range(anchor, NUM_PROMPT + num_output)), 1)


@pytest.mark.parametrize(
    ("emitted", "found", "expected"),
    [
        ([4], [4, 5], True),
        ([4, 5], [4, 5, 6], True),
        ([4, 5], [4, 5], False),
        ([4, 5], [4], False),
        ([4, 5], [4, 6, 7], False),
    ],
)
def test_what_a_run_that_starts_over_has_to_repeat(emitted: list[int], found: list[int], expected: bool) -> None:
    assert FirstBlock(4, emitted, 1).goes_on_as(found) is expected


@pytest.mark.parametrize(
    ("algorithm", "num_output", "last_emitted", "is_decided", "length"),
    [
        ("prob_conf", 1, 0, False, 5),
        ("prob_conf", 3, 2, False, 5),
        ("prob_conf", 7, 4, False, 7),
        ("prob_conf", 7, 1, False, 10),
        ("self_speculative", 7, 4, False, 12),
        ("self_speculative", 4, 3, True, 5),
        ("", 7, 1, False, 12),
    ],
)
def test_what_has_kv(algorithm: str, num_output: int, last_emitted: int, is_decided: bool, length: int) -> None:
    """Of a window's run all but the last token and what was accepted last, and nothing that an EXTEND call decided.

    Otherwise SGLang counts right by itself.
    """
    state = request(range(0), algorithm, last_emitted)
    state.steps_before_flush = 0 if is_decided else None
    num_tokens = NUM_PROMPT + num_output
    found = COMMIT.shareable_len(state, NUM_PROMPT, num_tokens, num_encoded=NUM_PROMPT, block_size=4)
    assert min(num_tokens, found) == length
