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


@pytest.mark.parametrize(
    ("first", "speeds", "measured"),
    [
        ("4", {"4": 10, "8": 9, "16": 7}, ["4", "8", "16"]),
        ("8", {"4": 7, "8": 10, "16": 11, "32": 8}, ["8", "16", "32", "4"]),
        ("32", {"8": 7, "16": 9, "32": 10}, ["32", "16", "8"]),
    ],
)
def test_walked(router: Any, first: str, speeds: dict[str, float], measured: list[str]) -> None:
    """From the first to both sides, as far as the next that is far slower."""
    found = router.walked(["4", "8", "16", "32"], first, lambda name: router.Window(1.0, speeds[name]))
    assert list(found) == measured


def test_turns_take_the_time_that_is_left(router: Any) -> None:
    times = router.Times(screening=1.0, turn=2.0, num_turns=3, settling=0.5, begin=2.0)
    assert times.within(12.0, num_contenders=4) == router.Times(1.0, 0.5, 3, 0.5, 2.0)
    assert times.within(1.0, num_contenders=4).turn == router.LEAST_TURN


def test_over(router: Any) -> None:
    """Each turn counts over the way that is the fastest in the others: luck in a turn does not choose what it meets."""
    turns = {"auto": [8.0, 8.0], "autoregressive": [9.0, 4.0], "self_speculation/4": [2.0, 8.0]}
    row = {name: {"turns": values, "contends": True} for name, values in turns.items()}
    row["self_speculation/8"] = {"contends": False}
    first, second = 8 / 2, 8 / 4
    found = router.ratios_of(row)
    assert found["auto_over_best"]["mean"] == pytest.approx((first * second) ** 0.5, abs=1e-3)
    assert found["auto_over_best"]["standard_error"] == pytest.approx((first * second) ** 0.5 * 0.3466, abs=1e-3)
    assert found["auto_over_autoregressive"]["mean"] == pytest.approx((8 / 9 * 8 / 4) ** 0.5, abs=1e-3)
