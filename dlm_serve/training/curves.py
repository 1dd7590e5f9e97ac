"""Plot loss curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def plot_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Write a picture with one panel per phase in `history`, each loss a line over the steps."""
    phases = list(dict.fromkeys(entry["phase"] for entry in history))
    figure = Figure(figsize=(5 * max(len(phases), 1), 4), layout="constrained")
    for panel, phase in enumerate(phases, start=1):
        axes = figure.add_subplot(1, len(phases), panel, title=phase, xlabel="step", ylabel="nats per token")
        entries = [entry for entry in history if entry["phase"] == phase]
        for name in (name for name in entries[0] if name.endswith("_loss")):
            axes.plot([entry["step"] for entry in entries], [entry[name] for entry in entries], label=name)
        axes.set_yscale("log")
        axes.legend()
    figure.savefig(path, dpi=120)
