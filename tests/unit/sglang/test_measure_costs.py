"""Which forwards are measured before the first request, and what is made of their times."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dlm_serve.decoding import Rows
from dlm_serve.routing.costs import CostTable
from dlm_serve.sglang.engine import measure_costs
from dlm_serve.sglang.engine.measure_costs import CostMeasurement

WIDTHS, MAX_ROWS = (4, 32), 64


def ms_of(num_tokens: int, context: int) -> float:
    return 5 + 0.01 * num_tokens + 1e-4 * context


class Forwards:
    """In place of block and decode forwards: note what the last one was over, and that its slots are its own."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.ms = 0.0
        self.shapes: set[tuple[int, int]] = set()

    def note(self, lens: torch.Tensor, width: int) -> None:
        context = int(lens[0])
        self.shapes.add((len(lens), width))
        slots = self.runner.req_to_token_pool.req_to_token[1 : len(lens) + 1, :context]
        assert slots.min() > 0
        assert slots.max() <= self.runner.token_to_kv_pool.size
        self.ms = ms_of(len(lens) * width, len(lens) * context)

    def forward(self, indices: torch.Tensor, lens: torch.Tensor, width: int) -> Any:
        self.note(lens, width)
        return SimpleNamespace(advance=lambda: None)

    def logits(self, indices: torch.Tensor, lens: torch.Tensor, on_host: torch.Tensor) -> Any:
        self.note(lens, 1)
        return torch.zeros(len(indices), 8), True

    def emit(self, indices: torch.Tensor, token_ids: torch.Tensor) -> None:
        pass


def measured(
    monkeypatch: pytest.MonkeyPatch,
    widths: tuple[int, ...],
    captured: Callable[[int], int],
    row_length: int = 4096,
    num_slots: int = 1_000_000,
) -> tuple[CostTable, set[tuple[int, int]]]:
    """The costs that are measured, and rows and widths of the forwards. Tables are left as they were."""
    table = Rows.table(MAX_ROWS + 1, 32, 3, "cpu")
    slot_table = torch.zeros(MAX_ROWS + 1, row_length, dtype=torch.int32)
    pools = {"req_to_token_pool": SimpleNamespace(req_to_token=slot_table)}
    runner: Any = SimpleNamespace(**pools, token_to_kv_pool=SimpleNamespace(size=num_slots))
    forwards: Any = Forwards(runner)

    def timed(forward: Any) -> float:
        forward()
        return float(forwards.ms)

    monkeypatch.setattr(measure_costs, "_median_ms", timed)
    before = table.gather(torch.arange(MAX_ROWS + 1))
    costs = CostMeasurement(forwards, forwards, table, runner).run(widths, captured, MAX_ROWS)
    assert not slot_table.any()
    assert table.gather(torch.tensor([0])).phase.tolist() == before.gather(torch.tensor([0])).phase.tolist()
    assert not table.tokens[1:].any()
    return costs, forwards.shapes


@pytest.mark.parametrize(
    ("row_length", "num_slots", "captured", "knows_context"),
    [(4096, 1_000_000, 64, True), (4096, 3000, 64, False), (100, 1_000_000, 64, False), (4096, 1_000_000, 0, True)],
    ids=["room", "small pool", "short rows", "nothing captured"],
)
def test_measured(
    row_length: int, num_slots: int, captured: int, knows_context: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs, _ = measured(monkeypatch, WIDTHS, lambda width: captured, row_length, num_slots)
    context = 0 if knows_context else min(256, row_length - 64)
    for rows in (1, 3, 20, MAX_ROWS):
        assert costs.decode_ms[rows] == pytest.approx(ms_of(rows, rows * context))
        for k, width in enumerate(WIDTHS):
            assert costs.block_ms[k, rows] == pytest.approx(ms_of(rows * width, rows * context))
    assert costs.decode_context_ms == pytest.approx(1e-4 if knows_context else 0)
    assert costs.block_context_ms.tolist() == pytest.approx([1e-4 if knows_context else 0] * 2)


def test_of_rows_of_one_forward_only_those_with_graphs_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others would say so in the log, and are never chosen. What their context costs is known all the same."""
    captured = {4: MAX_ROWS, 32: MAX_ROWS, 64: 4, 128: 0}
    costs, shapes = measured(monkeypatch, tuple(captured), captured.__getitem__)
    assert {rows for rows, width in shapes if width == 64} == {1, 2, 4}
    assert {rows for rows, width in shapes if width == 128} == {1}
    assert costs.block_ms[2, 4] == pytest.approx(ms_of(4 * 64, 0))
    assert np.isinf(costs.block_ms[2, 5:]).all()
    assert np.isinf(costs.block_ms[3, 1:]).all()
    assert costs.block_context_ms.tolist() == pytest.approx([1e-4] * 4)
