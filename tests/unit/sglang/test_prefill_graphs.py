"""Which prefills SGLang is told to capture, and whether each in one CUDA graph."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from sglang.srt.model_executor.cuda_graph_config import Backend, CudaGraphConfig, PhaseConfig

from dlm_serve.sglang.engine import prefill_graphs
from dlm_serve.sglang.engine.prefill_graphs import set_prefill_graphs

NO_FLAG: dict[str, Any] = {"cuda_graph_backend_prefill": None, "cuda_graph_config": None, "tp_size": 1}


def captured(
    monkeypatch: pytest.MonkeyPatch, prefill: PhaseConfig, attention: str = "fa3", **flags: object
) -> PhaseConfig:
    """Return what SGLang would capture of prefills, from what it has resolved itself."""
    config = CudaGraphConfig(prefill=prefill)
    execution = SimpleNamespace(graph=SimpleNamespace(cuda_graph_config=config))
    monkeypatch.setattr(prefill_graphs, "get_exec", lambda: execution)
    monkeypatch.setattr(prefill_graphs, "attention_backends", lambda: (attention, "another"))
    set_prefill_graphs(cast(Any, SimpleNamespace(**{**NO_FLAG, **flags})))
    return config.prefill


@pytest.mark.parametrize(
    ("attention", "resolved", "flags", "expected"),
    [
        ("fa3", Backend.BREAKABLE, {}, Backend.FULL),
        ("flashinfer", Backend.BREAKABLE, {}, Backend.BREAKABLE),
        ("fa3", Backend.DISABLED, {}, Backend.DISABLED),
        ("fa3", Backend.BREAKABLE, {"tp_size": 2}, Backend.BREAKABLE),
        ("fa3", Backend.FULL, {"tp_size": 2, "cuda_graph_backend_prefill": "full"}, Backend.FULL),
        ("fa3", Backend.BREAKABLE, {"cuda_graph_backend_prefill": "breakable"}, Backend.BREAKABLE),
        ("fa3", Backend.BREAKABLE, {"cuda_graph_config": {"prefill": {"backend": "breakable"}}}, Backend.BREAKABLE),
        ("fa3", Backend.BREAKABLE, {"cuda_graph_config": {"prefill": {"bs": [4]}, "decode": {}}}, Backend.FULL),
        ("fa3", Backend.BREAKABLE, {"cuda_graph_config": CudaGraphConfig()}, Backend.BREAKABLE),
        ("flashinfer", Backend.FULL, {"cuda_graph_backend_prefill": "full"}, Backend.FULL),
    ],
)
def test_a_prefill_is_one_graph_where_that_was_measured_and_the_user_has_not_chosen(
    monkeypatch: pytest.MonkeyPatch, attention: str, resolved: str, flags: dict[str, object], expected: str
) -> None:
    prefill = PhaseConfig(backend=resolved, bs=[4, 8])
    assert captured(monkeypatch, prefill, attention, **flags).backend == expected


@pytest.mark.parametrize(("asked", "expected"), [(None, 64), (8, 8)])
def test_a_crowd_of_prompts_has_room_in_it(monkeypatch: pytest.MonkeyPatch, asked: int | None, expected: int) -> None:
    prefill = PhaseConfig(backend=Backend.BREAKABLE, bs=[4], full_prefill_max_req=asked)
    assert captured(monkeypatch, prefill).full_prefill_max_req == expected


@pytest.mark.parametrize(("sizes", "expected"), [([4, 8], [1, 4, 8]), ([1, 16], [1, 16]), ([], []), (None, None)])
def test_a_prefill_of_one_token_is_captured_where_any_is(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int] | None, expected: list[int] | None
) -> None:
    assert captured(monkeypatch, PhaseConfig(backend=Backend.BREAKABLE, bs=sizes)).bs == expected
