"""Graphs of block steps against the eager step, without a GPU."""

from __future__ import annotations

from pathlib import Path

from processes import output_of

SCRIPT = Path(__file__).parent / "graphs_equal_eager.py"


def test_graphs_equal_eager() -> None:
    output_of(SCRIPT)
