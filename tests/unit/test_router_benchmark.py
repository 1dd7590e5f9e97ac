"""What `benchmarks/router.py` makes of its measurements."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("router")


@pytest.mark.parametrize(
    ("speeds", "contenders"),
    [
        ({"autoregressive": 9, "self_speculation/4": 10, "self_speculation/8": 8}, {0, 4}),
        ({"autoregressive": 8, "self_speculation/4": 10, "self_speculation/8": 9}, {0, 4, 8}),
        ({"autoregressive": 5, "self_speculation/4": 10, "self_speculation/8": 9}, {4, 8}),
    ],
)
def test_contending(router: Any, speeds: dict[str, float], contenders: set[int]) -> None:
    """The two fastest, and autoregression where it is not far behind."""
    names = {"autoregressive" if width == 0 else f"self_speculation/{width}" for width in contenders}
    assert set(router.contending(speeds)) == names


def test_over_best(router: Any) -> None:
    """Each turn counts over the way that is the fastest in the others: luck in a turn does not choose what it meets."""
    turns = {"auto": [8.0, 8.0], "autoregressive": [9.0, 4.0], "self_speculation/4": [2.0, 8.0]}
    row = {name: {"turns": values, "contends": True} for name, values in turns.items()}
    row["self_speculation/8"] = {"contends": False}
    first, second = 8 / 2, 8 / 4
    found = router.over_best(row)
    assert found["mean"] == pytest.approx((first * second) ** 0.5, abs=1e-3)
    assert found["standard_error"] == pytest.approx(found["mean"] * 0.3466, abs=1e-3)  # ln 2 / 2
