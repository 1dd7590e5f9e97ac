"""A step is planned anew when the batch has changed, or when it is said that a request has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dlm_serve.decoding import (
    BlockCommit,
    CausalCommit,
    Commit,
    DecodePlan,
    Mode,
    ModeSettings,
    PromptMask,
    RequestState,
    WindowCommit,
)
from dlm_serve.routing.costs import LearnedCosts
from dlm_serve.sglang.engine.planned_step import StepPlanner
from dlm_serve.sglang.engine.requests import known_start_of

SPECULATION, AUTOREGRESSIVE = ModeSettings(Mode.SELF_SPECULATION, 8), ModeSettings(Mode.AUTOREGRESSIVE, 1)
BLOCKS, DRAFTS = ModeSettings(Mode.DIFFUSION, 4, 0.9), ModeSettings(Mode.DIFFUSION, 4, algorithm="self_speculative")


class Req(SimpleNamespace):
    """Equal to itself alone, as SGLang's requests are."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]  # SimpleNamespace has none


def req_of(settings: ModeSettings, **fields: Any) -> Any:
    return Req(dlm_state=RequestState(DecodePlan((settings,))), grammar=None, return_logprob=False, **fields)


def planner_of(commit: Commit | None = None) -> StepPlanner:
    return StepPlanner(commit or CausalCommit(), LearnedCosts((8,), max_rows=8).table, row_width=8, device="cpu")


def test_the_plan_lasts_while_the_batch_does() -> None:
    planner, first, second = planner_of(), req_of(SPECULATION), req_of(SPECULATION)
    planned = planner.plan([first, second])
    assert planner.plan([first, second]) is planned
    assert planner.plan([second, first]) is not planned
    assert planner.plan([first]).plan.block_rows == (0,)


def test_a_batch_changed_in_place_is_planned_anew() -> None:
    planner, batch = planner_of(), [req_of(SPECULATION), req_of(SPECULATION)]
    planned = planner.plan(batch)
    batch.pop()
    assert planner.plan(batch).plan.block_rows == (0,) != planned.plan.block_rows


def test_forget() -> None:
    planner, req = planner_of(), req_of(SPECULATION)
    assert planner.plan([req]).decode is None
    req.dlm_state.current = AUTOREGRESSIVE
    assert planner.plan([req]).decode is None
    planner.forget()
    assert planner.plan([req]).decode is not None


def test_groups() -> None:
    reqs = [req_of(BLOCKS), req_of(AUTOREGRESSIVE), req_of(DRAFTS)]
    planned = planner_of(WindowCommit()).plan(reqs)
    for group, number in ((planned.block, 0), (planned.decode, 1), (planned.windows, 2)):
        assert group is not None
        assert group.rows is not None
        assert (group.numbers, group.rows.tolist(), group.states) == ((number,), [number], [reqs[number].dlm_state])


@pytest.mark.parametrize("commit", [WindowCommit(), BlockCommit(PromptMask.BIDIRECTIONAL)], ids=["window", "block"])
def test_a_prefill_is_sampled_for_one_token_at_a_time_and_before_the_last_chunk(commit: Commit) -> None:
    tokens = {"origin_input_ids": [1, 2, 3, 4, 5], "output_ids": []}
    assert known_start_of(req_of(BLOCKS, extend_end=5, **tokens), commit) is not None
    assert known_start_of(req_of(BLOCKS, extend_end=3, **tokens), commit) is None
    assert known_start_of(req_of(AUTOREGRESSIVE, extend_end=5, **tokens), commit) is None
