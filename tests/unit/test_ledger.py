"""Every hook is in the ledger, probed before it is installed, and names a function of ours."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from dlm_serve import compat
from dlm_serve.plugin import HOOKS, Hook

ROOT = Path(__file__).parent.parent.parent
LEDGER = (ROOT / "docs" / "architecture.md").read_text()

by_target = pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.target.rsplit(".", 1)[1])


@by_target
def test_documented(hook: Hook) -> None:
    cells = [
        str(hook.role),
        f"`{hook.target.removeprefix('sglang.srt.')}`",
        f"{hook.kind} `{hook.hook.removeprefix('dlm_serve.')}`",
        hook.why,
        hook.until,
    ]
    assert f"| {' | '.join(cells)} |" in LEDGER


@by_target
def test_probed(hook: Hook) -> None:
    assert hook.target in {seam.target for seam in compat.SEAMS}


@by_target
def test_names_a_function_of_ours(hook: Hook) -> None:
    module, name = hook.hook.split(":")
    source = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    assert name in {node.name for node in source.body if isinstance(node, ast.FunctionDef)}


def test_a_missing_seam_is_named() -> None:
    missing = compat.Seam("json.no_such_function")
    without_parameter = compat.Seam("json.dumps", ("obj", "no_such_parameter"))
    assert "json.no_such_function is missing" in (missing.problem() or "")
    assert without_parameter.problem() == "json.dumps has no parameter no_such_parameter"
    assert compat.Seam("json.dumps", ("obj",)).problem() is None
