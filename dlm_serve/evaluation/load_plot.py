"""Plot what a busy server gave its clients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

AUTO = "auto"


def draw(cells: Mapping[str, Mapping[str, Mapping[str, Any]]], path: Path) -> None:
    """Draw tokens per second, and tokens per forward, against concurrency: a line for each way to decode.

    `cells` holds the summaries of `load.Cell` by concurrency and way, of the ways that were measured there.
    """
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    rows = dict(sorted((int(concurrency), row) for concurrency, row in cells.items()))
    titles = {"tokens_per_s": "output tokens per second", "tokens_per_forward": "tokens per forward of a request"}
    for axes, (figure_of, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for name in dict.fromkeys(name for row in rows.values() for name in row):
            style: dict[str, Any] = {"color": "black", "linewidth": 2.5} if name == AUTO else {"linewidth": 1}
            values = {concurrency: row[name][figure_of] for concurrency, row in rows.items() if name in row}
            axes.plot(list(values), list(values.values()), "o-", label=name, **style)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(list(rows), list(map(str, rows)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="requests at once", title=title)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=130)
