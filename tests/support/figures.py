"""The figures that were measured, and the pages that say them."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from dlm_serve import bundled

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README, PERFORMANCE, MODELS = (ROOT / name for name in ("README.md", "docs/performance.md", "docs/models.md"))
ONE_FORWARD = ROOT / "docs" / "one-forward.md"
CARD = bundled.FOLDER / "README.md"
QUALITIES = ("m0", "m2.6", "m3.2")
"""Checkpoints of `router_gpu.json` and `router_budgets.json`, by the noise on their drafts."""
KINDS = ("linear", "one forward")


def measured(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def accepted(quality: str) -> str:
    rows = measured("router_gpu")["cells"][quality].values()
    lengths = [row["self_speculation/32"]["acceptance_length"] for row in rows if "self_speculation/32" in row]
    return f"{statistics.mean(lengths):.1f}"


def largest_gap(*ways: str) -> float:
    """By how many nats tokens differ at most where answers of these ways part from autoregression."""
    found = measured("agreement")["ways"]
    return max(abs(float(nats)) for way in ways for nats in found[way]["gaps_nats"])


def fastest(row: dict[str, Any], kind: str) -> str:
    """The fastest way of a kind, `linear` or `one forward`, of those that were measured at a concurrency."""
    ways = [way for way in row if way.startswith("self_speculation/") and row[way]["tokens_per_s"]]
    return max(
        (way for way in ways if ("one_forward" in way) == (kind == "one forward")),
        key=lambda way: float(row[way]["tokens_per_s"]),
    )
