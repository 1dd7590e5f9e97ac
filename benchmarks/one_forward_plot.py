"""Draw what `router.py` measured by kind: autoregression, the best in turn, the best in one forward, and `auto`.

python benchmarks/one_forward_plot.py      # benchmarks/results/router_gpu_kinds.png, of router_gpu.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import report
from matplotlib.figure import Figure

KINDS: dict[str, Callable[[str], bool]] = {
    "autoregressive": lambda way: way == "autoregressive",
    "best in turn": lambda way: way.startswith("self_speculation/") and "one_forward" not in way,
    "best in one forward": lambda way: "one_forward" in way,
    "auto": lambda way: way == "auto",
}


def speeds(rows: dict[str, Any], is_of_kind: Callable[[str], bool]) -> dict[int, float]:
    """Return the tokens per second of the fastest way of a kind, by how many requests there were at once."""
    measured = {
        int(number): [row[way]["tokens_per_s"] for way in row if is_of_kind(way)] for number, row in rows.items()
    }
    return {number: max(found) for number, found in measured.items() if found}


def main() -> None:
    """Draw a panel for each checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--name", default="router_gpu", help="of the file in benchmarks/results")
    name = parser.parse_args().name
    cells = json.loads((report.RESULTS / f"{name}.json").read_text())["cells"]
    cells = dict(sorted(cells.items(), key=lambda item: -_accepted(item[1])))
    figure = Figure(figsize=(4.2 * len(cells), 4.2), layout="constrained")
    for axes, rows in zip(figure.subplots(1, len(cells), squeeze=False)[0], cells.values(), strict=True):
        for kind, is_of_kind in KINDS.items():
            found = speeds(rows, is_of_kind)
            axes.plot(list(found), list(found.values()), "o-", label=kind, linewidth=1.5)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(list(map(int, rows)), list(rows))
        axes.yaxis.set_major_formatter("{x:.0f}")
        axes.set(xlabel="requests at once", title=f"blocks of 32 accept {_accepted(rows):.1f} tokens")
    figure.axes[0].set_ylabel("output tokens per second")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(report.RESULTS / f"{name}_kinds.png", dpi=130)


def _accepted(rows: dict[str, Any]) -> float:
    """Return the tokens of a draft that one request accepts, in blocks of 32 drafted in turn."""
    return float(rows["1"]["self_speculation/32"]["acceptance_length"])


if __name__ == "__main__":
    main()
