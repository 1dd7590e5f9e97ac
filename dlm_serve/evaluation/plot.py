"""Plot an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlm_serve.evaluation.report import Report, Result

_MARKERS = {"autoregressive": "s", "diffusion": "o", "self_speculation": "D"}


def draw(report: Report, path: Path) -> None:
    """Write a PNG: accuracy against tokens per forward, and the loss by position inside the block."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_pareto(left, report.results)
    _draw_losses(right, report.results)
    figure.savefig(path, dpi=150)


def _draw_pareto(axes: Axes, results: Sequence[Result]) -> None:
    """Draw one line per mode, through its thresholds, and a horizontal line at the autoregressive accuracy."""
    for mode, marker in _MARKERS.items():
        of_mode = [result for result in results if result.mode == mode and result.figures.tokens_per_forward]
        points = [(result.figures.tokens_per_forward, 100 * result.figures.accuracy) for result in of_mode]
        if not points:
            continue
        (line,) = axes.plot(*zip(*points, strict=True), marker=marker, label=mode)
        for result, point in zip(of_mode, points, strict=True):
            if result.threshold is not None:
                axes.annotate(f"{result.threshold:g}", point, xytext=(4, 4), textcoords="offset points", fontsize=8)
        if mode == "autoregressive":
            axes.axhline(points[0][1], color=line.get_color(), linestyle=":", linewidth=1)
    axes.margins(0.1)  # room for the thresholds
    axes.set(xlabel="tokens per forward pass", ylabel="exact match, %", title="Held-out tasks, by threshold")
    _add_legend(axes)


def _draw_losses(axes: Axes, results: Sequence[Result]) -> None:
    for result in results:
        found = [(position, loss) for position, loss in enumerate(result.loss_by_position) if loss is not None]
        if found:
            axes.plot(*zip(*found, strict=True), marker=_MARKERS[result.mode], markersize=3, label=str(result.setting))
    axes.set(
        xlabel="position inside the block", ylabel="autoregressive loss, nats", title="Loss of the answers' tokens"
    )
    _add_legend(axes)


def _add_legend(axes: Axes) -> None:
    """Add a legend if anything was drawn."""
    if axes.lines:
        axes.legend(fontsize=8)
