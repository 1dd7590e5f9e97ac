"""Every hook of the ledger names code of ours, and is in place before a server starts."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from processes import output_of_fresh

from dlm_serve.seams import Seam, problem_with
from dlm_serve.sglang.ledger import ENTRY_HOOKS, HOOKS, Hook

ROOT = Path(__file__).parent.parent.parent
SCRIPT = Path(__file__).parent / "hooks_in_place.py"


@pytest.mark.parametrize("hook", [*ENTRY_HOOKS, *HOOKS], ids=lambda hook: hook.target.rsplit(".", 1)[1])
def test_names_code_of_ours(hook: Hook) -> None:
    module, name = hook.hook.split(":")
    source = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    kind = ast.ClassDef if hook.kind == "replace" else ast.FunctionDef
    assert name in {node.name for node in source.body if isinstance(node, kind)}


def test_a_missing_seam_is_named() -> None:
    missing = Seam("json.no_such_function")
    without_parameter = Seam("json.dumps", ("obj", "no_such_parameter"))
    assert "json.no_such_function is missing" in (problem_with(missing) or "")
    assert problem_with(without_parameter) == "json.dumps has no parameter no_such_parameter"
    assert problem_with(Seam("json.dumps", ("obj",))) is None


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What `hooks_in_place.py` finds in processes of SGLang's, which here import what is hooked only when it is."""
    found: dict[str, Any] = json.loads(output_of_fresh(SCRIPT).splitlines()[-1])
    return found


def test_all_hooks_are_in_place(found: dict[str, Any]) -> None:
    assert found["missing"] == []


def test_another_model_is_left_alone(found: dict[str, Any]) -> None:
    assert found["in place for another model"] == []


def test_the_changed_sglang_passes_the_probe(found: dict[str, Any]) -> None:
    """As it must where a second engine starts in the same process."""
    assert found["probe"] == "passed"


@pytest.mark.parametrize("hook", [*ENTRY_HOOKS, *HOOKS], ids=lambda hook: hook.target.rsplit(".", 1)[1])
def test_a_hook_that_fails_is_fatal(found: dict[str, Any], hook: Hook) -> None:
    message = found["refusals"][hook.target]
    assert message.startswith("UnsupportedSGLangError: dlm-serve's hooks for role")
    assert f"are not in place: {hook.kind} {hook.target}" in message


def test_what_sglang_only_logs_is_fatal(found: dict[str, Any]) -> None:
    assert "are not in place: replace sglang.srt.managers.scheduler.Scheduler" in found["not applied"]


def test_a_hook_that_came_too_late_is_fatal(found: dict[str, Any]) -> None:
    """SGLang does not apply it where another plugin's hook has changed the target already."""
    assert "are not in place: after sglang.srt.entrypoints.api_contract" in found["too late"]
