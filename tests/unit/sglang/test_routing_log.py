"""What an operator reads in the log, and how long steps take."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from dlm_serve.routing.costs import StepShape
from dlm_serve.routing.prefills import PrefillShape
from dlm_serve.sglang.engine import step_timer
from dlm_serve.sglang.engine.routing import RoutingLog
from dlm_serve.sglang.engine.step_timer import HostTimer, Timed


def router_of(expected: float | None = 9.0, **requests: int) -> Any:
    """A router that has decided so; without requests it has not."""
    report = {
        "requests": requests,
        "expected_tokens_per_s": expected,
        "expected_of_each": {"autoregressive": 7.0},
        "switches": 3,
    }
    return SimpleNamespace(outcome=requests or None, report=lambda: report)


def test_the_log_has_a_line_a_minute_and_only_when_the_choice_has_changed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    log, now = RoutingLog(), [0.0]
    monkeypatch.setattr("dlm_serve.sglang.engine.routing.time.monotonic", lambda: now[0])
    seen = []
    for seconds, router in (
        (0, router_of(autoregressive=2)),
        (30, router_of(autoregressive=2, drafts=1)),
        (70, router_of(autoregressive=5)),
        (80, router_of(drafts=1)),
        (90, router_of(autoregressive=1)),
        (900, router_of()),
        (901, router_of(None, autoregressive=4)),
    ):
        now[0] = seconds
        before = len(caplog.records)
        log.note(router)
        seen.append(len(caplog.records) - before)
    assert seen == [1, 0, 0, 1, 0, 0, 1]
    assert "{'drafts': 1}: 9.0 tokens per second are expected, 7.0 autoregressively; 3 switches so far" in caplog.text
    assert "{'autoregressive': 4}: 3 switches so far" in caplog.text


def test_steps_are_timed_from_the_end_of_the_one_before_and_prefills_until_the_next_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([10.0, 10.002, 10.01, 19.0, 19.25, 19.5, 19.625, 20.0, 20.005])
    monkeypatch.setattr("dlm_serve.sglang.engine.step_timer.time.perf_counter", lambda: next(clock))
    timer, first, second, third = HostTimer(), *(StepShape(num_decode=n) for n in (1, 2, 3))
    chunk, last_chunk = PrefillShape(1, 100), PrefillShape(1, 20)
    timer.begin_step()
    timer.end_step(first)
    timer.begin_step()
    timer.end_step(second)
    for shape in (chunk, last_chunk):
        with timer.prefill(shape):
            pass
    timer.begin_step()
    timer.end_step(third)
    found = [Timed(shape, round(ms, 3)) for shape, ms in timer.finished()]
    assert found == [(first, 2.0), (second, 8.0), (chunk, 250.0), (last_chunk, 500.0), (third, 5.0)]
    assert list(timer.finished()) == []


def test_steps_that_nobody_asks_for_are_not_kept_forever() -> None:
    """As on all ranks but the first."""
    timer = HostTimer()
    for _ in range(3 * step_timer.MOST_KEPT):
        timer.begin_step()
        timer.end_step(StepShape(num_decode=1))
    assert len(list(timer.finished())) == step_timer.MOST_KEPT
