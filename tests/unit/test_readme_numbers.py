"""The README's figures are those that were measured."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", ["tokens_per_forward", "decode_speed"])
def test_tables(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # the scripts extend it
    figures = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    assert importlib.import_module(name).table(figures) in (ROOT / "README.md").read_text()
