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


ERRORS = {"OptionError", "ConfigError", "CheckpointError", "UnsupportedSGLangError", "ServerError"}
PARTS = {"training", "inflation", "evaluation"}
"""Whose errors are those of a recipe or a measurement, not of a server."""


@cache
def trees() -> dict[Path, ast.Module]:
    """Return the sources."""
    return {path: ast.parse(path.read_text()) for path in sorted((ROOT / "dlm_serve").rglob("*.py"))}


def texts_in(node: ast.AST) -> Iterator[str]:
    """Yield the texts in a part of a source, with a mark for each value that is filled in."""
    for each in ast.walk(node):
        if isinstance(each, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else VARIES for part in each.values)
            yield "".join(map(str, parts))
        elif isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield re.sub(r"%[sd]", VARIES, each.value)


@cache
def texts() -> tuple[str, ...]:
    """Return all texts in the sources."""
    return tuple(text for tree in trees().values() for text in texts_in(tree))


def raised() -> Iterator[tuple[str, list[str]]]:
    """Yield where an error is made, and the texts that its message is made of, through names of the same function."""
    for path, tree in trees().items():
        if not PARTS & set(path.parts):
            for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
                for call in ast.walk(function):
                    if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ERRORS:
                        yield f"{path.name}:{call.lineno}", [*texts_in(call), *_behind_names(call, function)]


def _behind_names(call: ast.Call, function: ast.FunctionDef) -> Iterator[str]:
    names = {each.id for each in ast.walk(call) if isinstance(each, ast.Name)}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") in names for target in node.targets):
            yield from texts_in(node.value)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_one_of_ours(message: str) -> None:
    assert any(message in text for text in texts()), f"no text of dlm_serve has {message!r}"


def test_every_error_has_its_cause_on_the_page() -> None:
    """A message without a text of its own passes on one that another place has."""
    unexplained = {
        where: said
        for where, parts in raised()
        if (said := [text for text in parts if re.search("[a-z] [a-z]", text)])
        and not any(message in text for message in MESSAGES for text in said)
    }
    assert not unexplained


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
