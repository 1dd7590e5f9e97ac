"""Requests that are preempted, or cut for want of room in a step, answer as they would have."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from golden import NEMOTRON_LABS_DIFFUSION, TRAINED, vllm_request_of

from dlm_serve.vllm.request import settings_of

EVERY = 3
"""Steps from one preemption to the next."""
MOST_PREEMPTIONS = 2
"""Of a request, which begins a block anew each time."""
TOKENS_OF_A_STEP = 50
"""Too few for the blocks of all requests."""
MOST_CASES = 10


def test_golden_cases_with_interruptions(
    start: Callable[..., Any], ask: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(TRAINED)
    scheduler = engine.llm_engine.engine_core.engine_core.scheduler
    schedule = scheduler.schedule
    preempted: list[int] = []
    cut: list[str] = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        is_due = scheduler.running and scheduler.current_step % EVERY == 0
        if is_due and scheduler.running[-1].num_preemptions < MOST_PREEMPTIONS:
            request = scheduler.running.pop()
            preempted.append(request.num_output_tokens)
            scheduler._preempt_request(request, time.monotonic())
            scheduler.prev_step_scheduled_req_ids.clear()  # it may be resumed by this very step
        scheduled = schedule(*args, **kwargs)
        for req_id, drafts in scheduled.scheduled_spec_decode_tokens.items():
            if 1 + len(drafts) < settings_of(scheduler.requests[req_id].sampling_params).block_length:
                cut.append(req_id)
        return scheduled

    monkeypatch.setattr(scheduler, "schedule", interrupted)
    monkeypatch.setattr(scheduler, "max_num_scheduled_tokens", TOKENS_OF_A_STEP)
    golden = NEMOTRON_LABS_DIFFUSION
    cases = [case for mode in ("diffusion", "linear_spec") for case in golden.cases(TRAINED, mode)[:MOST_CASES]]
    answers = ask(engine, [vllm_request_of(case) for case in cases])
    assert [list(each.token_ids) for each in answers] == [golden.expected_ids(case) for case in cases]
    assert any(preempted), "none was preempted in its answer"
    assert cut, "no block was cut"
