"""The messages that docs/troubleshooting.md explains are those of the sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from dlm_serve.options.article_names import ARTICLE_NAMES

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
VARIES = "…"
ROWS = [row.split(" | ")[0] for row in re.findall(r"^\| (`.*)$", PAGE, flags=re.MULTILINE)]
MESSAGES = sorted({message for row in ROWS for message in re.findall(r"`([^`]+)`", row) if " " in message})


@cache
def texts() -> tuple[str, ...]:
    """Return the texts in the sources, with a mark for each value that is filled in."""
    return tuple(text for path in sorted((ROOT / "dlm_serve").rglob("*.py")) for text in _texts(path))


def _texts(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else VARIES for part in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%[sd]", VARIES, node.value)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_one_of_ours(message: str) -> None:
    assert any(message in text for text in texts()), f"no text of dlm_serve has {message!r}"


def test_flags_that_are_refused_are_all_named() -> None:
    source = ast.parse((ROOT / "dlm_serve" / "sglang" / "defaults.py").read_text())
    [table] = [
        node.value
        for node in source.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_UNSUPPORTED"
    ]
    flags = {f"--{field.replace('_', '-')}" for field, *_ in map(_constants, getattr(table, "elts", ()))}
    [sentence] = re.findall(r"^These flags of SGLang's are refused.*$", PAGE, flags=re.MULTILINE)
    assert set(re.findall(r"`(--[\w-]+)`", sentence)) == flags


def _constants(node: ast.expr) -> list[str]:
    return [str(getattr(each, "value", "")) for each in getattr(node, "elts", ())]


@pytest.mark.parametrize("name", ARTICLE_NAMES)
def test_names_of_articles_are_all_answered(name: str) -> None:
    table = PAGE.split("What articles call otherwise:")[1].split("## Requests")[0]
    assert re.search(rf"`(?:\w+\.)?{name}`", table)
