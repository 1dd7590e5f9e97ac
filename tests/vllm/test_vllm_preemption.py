"""Requests that are preempted, or cut for want of room in a step, answer as they would have."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from golden import MODES, NEMOTRON_LABS_DIFFUSION, TRAINED, vllm_request_of

from dlm_serve.decoding import ModeSettings
from dlm_serve.vllm.request import settings_of

EVERY = 4
"""Steps from one preemption to the next, and from one short step to the next; between them a block begins anew."""
MOST_PREEMPTIONS = 2
"""Of a request, which begins a block anew each time."""
TOKENS_OF_A_SHORT_STEP = 50
"""Too few for the blocks of all requests."""
MOST_CASES = 10


@pytest.mark.parametrize(
    ("is_ahead", "drops_output"),
    [(True, False), (True, True), (False, False)],
    ids=["ahead", "ahead_and_dropped", "in_turn"],
)
def test_golden_cases_with_interruptions(
    is_ahead: bool,
    drops_output: bool,
    start: Callable[..., Any],
    ask: Callable[..., list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a step of a request is in flight meanwhile, vLLM takes its output later, or drops it."""
    engine = start(TRAINED) if is_ahead else start(TRAINED, async_scheduling=False)
    scheduler = engine.llm_engine.engine_core.engine_core.scheduler
    schedule, tokens_of_a_step = scheduler.schedule, scheduler.max_num_scheduled_tokens
    preempted: Counter[str] = Counter()
    preempted_in_flight: Counter[str] = Counter()
    cut: list[str] = []

    def preempt() -> None:
        """Preempt a request of the mode of which the fewest were in their answers, if one may be."""
        candidates = [each for each in scheduler.running if each.num_preemptions < MOST_PREEMPTIONS]
        if not candidates:
            return
        request = min(candidates, key=lambda each: preempted[_settings(each).mode])
        if request.num_output_tokens:
            preempted[_settings(request).mode] += 1
            preempted_in_flight[_settings(request).mode] += request.num_in_flight_tokens > 0
        scheduler.running.remove(request)
        scheduler._preempt_request(request, time.monotonic(), drop_stale_output=drops_output)
        scheduler.prev_step_scheduled_req_ids.clear()  # it may be resumed by this very step

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if scheduler.current_step % EVERY == 0:
            preempt()
        is_short = scheduler.current_step % EVERY == EVERY - 1
        scheduler.max_num_scheduled_tokens = TOKENS_OF_A_SHORT_STEP if is_short else tokens_of_a_step
        scheduled = schedule(*args, **kwargs)
        for req_id, drafts in scheduled.scheduled_spec_decode_tokens.items():
            if 1 + len(drafts) < _settings(scheduler.requests[req_id]).block_length:
                cut.append(req_id)
        return scheduled

    monkeypatch.setattr(scheduler, "schedule", interrupted)
    monkeypatch.setattr(scheduler, "max_num_scheduled_tokens", tokens_of_a_step)  # which is put back
    golden = NEMOTRON_LABS_DIFFUSION
    by_mode = [golden.cases(TRAINED, mode)[:MOST_CASES] for mode in MODES]
    cases = [case for one_of_each in zip(*by_mode, strict=True) for case in one_of_each]
    answers = ask(engine, [vllm_request_of(case) for case in cases])
    assert [list(each.token_ids) for each in answers] == [golden.expected_ids(case) for case in cases]
    assert set(preempted) == set(MODES.values()), "a mode was not preempted in its answers"
    assert all(preempted_in_flight.values()) if is_ahead else not any(preempted_in_flight.values())
    assert cut, "no block was cut"


def _settings(request: Any) -> ModeSettings:
    """Return how a request of vLLM's scheduler decodes."""
    return settings_of(request.sampling_params)
