"""Costs are kept by what they depend on; a file that cannot be used is ignored with a note."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from router_scenes import card

from dlm_serve.routing.cost_file import FOLDER_VARIABLE, CostFile

KEY = {"gpu": "A", "versions": {"torch": "2"}, "labels": {0: "x"}, "sizes": (1, 2)}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """With a key that JSON gives back otherwise, and costs of rows that have no graph."""
    table = card()
    table.block_ms[3, 200:] = np.inf
    CostFile(KEY, tmp_path).write(table)
    found = CostFile(KEY, tmp_path).read()
    assert found is not None
    assert (found.widths, found.decode_ms.tolist()) == (table.widths, table.decode_ms.tolist())
    assert found.block_ms.tolist() == table.block_ms.tolist()
    assert [path.name for path in tmp_path.iterdir()] == [CostFile(KEY, tmp_path).path.name]


def test_another_key_is_another_file(tmp_path: Path) -> None:
    CostFile(KEY, tmp_path).write(card())
    assert CostFile({**KEY, "gpu": "B"}, tmp_path).read() is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: "{",
        lambda content: "[]",
        lambda content: json.dumps({**content, "key": {"gpu": "C"}}),
        lambda content: json.dumps({**content, "costs": {**content["costs"], "widths": [4]}}),
        lambda content: json.dumps({**content, "costs": {**content["costs"], "decode_ms": [0.0, -1.0]}}),
        lambda content: json.dumps({**content, "costs": {}}),
    ],
    ids=["cut off", "no mapping", "of another key", "sizes", "negative", "empty"],
)
def test_a_damaged_file_is_ignored(damage: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = CostFile(KEY, tmp_path)
    file.write(card())
    file.path.write_text(damage(json.loads(file.path.read_text())))
    assert file.read() is None
    assert "measuring again" in caplog.text


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    CostFile(KEY, tmp_path / "file").write(card())
    assert "not kept" in caplog.text


def test_the_folder_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert CostFile(KEY).path.parent == tmp_path
