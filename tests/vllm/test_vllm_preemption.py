"""Requests that are preempted for want of memory, or cut for want of room in a step, answer as they would have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from golden import NEMOTRON_LABS_DIFFUSION, TRAINED
from test_vllm_golden import request_of

FEW_BLOCKS = {"num_gpu_blocks_override": 24, "max_num_seqs": 12, "max_num_batched_tokens": 48}
"""KV for 384 tokens, and steps that are too short for 12 blocks of 8."""
MOST_CASES = 12


def test_golden_cases_in_little_memory(
    start: Callable[..., Any], ask: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(TRAINED, **FEW_BLOCKS)
    scheduler = engine.llm_engine.engine_core.engine_core.scheduler
    preempted: list[str] = []
    preempt = scheduler._preempt_request

    def noted(request: Any, *args: Any, **kwargs: Any) -> None:
        preempted.append(request.request_id)
        preempt(request, *args, **kwargs)

    monkeypatch.setattr(scheduler, "_preempt_request", noted)
    golden = NEMOTRON_LABS_DIFFUSION
    cases = [case for mode in ("diffusion", "linear_spec") for case in golden.cases(TRAINED, mode)[:MOST_CASES]]
    answers = ask(engine, [request_of(case) for case in cases])
    assert [list(each.token_ids) for each in answers] == [golden.expected_ids(case) for case in cases]
    assert preempted
