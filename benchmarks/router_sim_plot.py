"""Draw what `router_sim.py` found: for each load what every way has of the speed of the best fixed one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

LEAST = 0.4
"""Of the best fixed way's speed: slower ways are left out of the plot."""
MARKERS: dict[str, dict[str, Any]] = {
    "autoregressive": {"color": "grey", "marker": "x"},
    **{
        f"self_speculation/{width}": {"color": color, "marker": "s"}
        for width, color in zip((4, 8, 16, 32), ("#c6dbef", "#6baed6", "#2171b5", "#08306b"), strict=True)
    },
    **{
        f"self_speculation/one_forward/{budget}": {"color": color, "marker": "^"}
        for budget, color in zip(
            (16, 32, 64, 96, 128), ("#fdd0a2", "#fdae6b", "#f16913", "#d94801", "#7f2704"), strict=True
        )
    },
    "clairvoyant": {"color": "none", "edgecolor": "green", "marker": "o", "s": 60},
    "auto": {"color": "black", "marker": "_", "s": 160, "linewidth": 2.5},
}


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Write `path`: a column for each load of `results`, whose figures are tokens per second by way."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    axes = figure.subplots()
    for name, look in MARKERS.items():
        _mark(axes, results, name, look)
    axes.set_xticks(range(len(results)), results, rotation=60, ha="right", fontsize=8)
    axes.set(
        ylabel="tokens per second, over the best fixed way",
        title="Simulated loads on an H200, 8B shape: quality of the drafts, requests",
        ylim=(LEAST, None),
    )
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=110)


def _mark(axes: Axes, results: dict[str, dict[str, Any]], name: str, look: dict[str, Any]) -> None:
    """Mark one way in each column in which it was measured and is fast enough."""
    places, heights = [], []
    for place, row in enumerate(results.values()):
        height = row.get(name, 0.0) / row[row["best fixed"]]
        if height > LEAST:
            places.append(place)
            heights.append(height)
    axes.scatter(places, heights, label=name, **{"s": 28, **look})
