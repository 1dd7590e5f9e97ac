"""Which window an EXTEND call starts with: behind all tokens, or, of a run that was emitted in part, the same again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dlm_serve.decoding import Mode
from dlm_serve.engine.requests import FirstBlock, RequestRecord, first_block_of, shareable_len
from dlm_serve.families import SDLM
from dlm_serve.plan import DecodePlan

NUM_PROMPT = 5


def request(num_output: int, first_run: range, algorithm: str = "prob_conf", **more: int) -> SimpleNamespace:
    """A request whose tokens are their positions, resumed after `num_output` tokens of its answer."""
    threshold = 0.9 if algorithm == "prob_conf" else None
    options = {"block_length": 4, "threshold": threshold, "steps": 1, "convergence_threshold": None}
    mode = Mode.DIFFUSION if algorithm else Mode.AUTOREGRESSIVE
    plan = DecodePlan.model_validate({"mode": mode, "algorithm": algorithm or None, **options})
    num_tokens = NUM_PROMPT + num_output
    return SimpleNamespace(
        origin_input_ids=list(range(NUM_PROMPT)),
        output_ids=list(range(NUM_PROMPT, num_tokens)),
        extend_end=more.get("extend_end", num_tokens),
        dlm_record=RequestRecord(plan, first_run=first_run, last_emitted=more.get("last_emitted", 0)),
    )


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
    found = first_block_of(request(num_output, first_run, algorithm), SDLM.policy)
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


def test_no_window_for_one_token_at_a_time_nor_before_the_last_chunk() -> None:
    assert first_block_of(request(2, range(0), ""), SDLM.policy) is None
    assert first_block_of(request(0, range(0), extend_end=3), SDLM.policy) is None


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
    req = request(num_output, range(0), algorithm, extend_end=NUM_PROMPT, last_emitted=last_emitted)
    req.dlm_record.steps_before_rest = 0 if is_decided else None
    assert min(NUM_PROMPT + num_output, shareable_len(req, SDLM.policy)) == length
