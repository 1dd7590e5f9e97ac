"""Imports point one way, and what needs no SGLang does not load it."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

STANDARD_LIBRARY = sys.stdlib_module_names
LIGHT_MODULES = (
    "dlm_serve",
    "dlm_serve.errors",
    "dlm_serve.training.tasks",
    "dlm_serve.decoding",
    "dlm_serve.families",
    "dlm_serve.options.server_file",
    "dlm_serve.options.resolve",
    "dlm_serve.options.file_rules",
    "dlm_serve.routing.router",
    "dlm_serve.routing.measured",
    "dlm_serve.routing.cost_file",
    "dlm_serve.scheduling.step_plan",
    "dlm_serve.scheduling.graph_shapes",
    "dlm_serve.metrics.meter",
    "dlm_serve.options.request_rules",
    "dlm_serve.sglang.ledger",
    "dlm_serve.sglang.protocols",
    "dlm_serve.sglang.seams",
    "dlm_serve.cli",
    "dlm_serve.client",
    "dlm_serve.evaluation.report",
)
HEAVY_PACKAGES = ("sglang", "triton", "transformers")


@cache
def folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def sources() -> list[tuple[str, Path]]:
    """Module names, without the package's own `__init__`, and their files."""
    found = []
    for package in ("dlm_serve", "dlm_kernels"):
        for file in sorted(folder_of(package).rglob("*.py")):
            parts = file.relative_to(folder_of(package)).with_suffix("").parts
            found.append((".".join([package, *(part for part in parts if part != "__init__")]), file))
    return found


def imports_of(file: Path) -> Iterator[str]:
    """All modules that `file` imports, inside functions too. `from a import b` counts as `a`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield node.module or ""


def is_inside(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.fixture(scope="module")
def loaded_by() -> dict[str, list[str]]:
    """Top-level packages in `sys.modules` of a fresh interpreter after each light module, in order."""
    code = f"""
import importlib, json, sys
loaded = {{}}
for name in {LIGHT_MODULES!r}:
    importlib.import_module(name)
    loaded[name] = sorted({{module.partition(".")[0] for module in sys.modules}})
sys.stdout.write(json.dumps(loaded))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    loaded: dict[str, list[str]] = json.loads(result.stdout)
    return loaded


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_light_modules_load_nothing_heavy(module: str, loaded_by: dict[str, list[str]]) -> None:
    assert "dlm_serve" in loaded_by[module]
    assert not set(HEAVY_PACKAGES) & set(loaded_by[module])


# Which packages, beside the standard library, the modules of a package may import.
ALLOWED = {
    "dlm_serve.decoding": ("torch", "dlm_kernels", "dlm_serve.decoding"),
    "dlm_serve.families": ("dlm_serve.decoding", "dlm_serve.errors", "dlm_serve.families"),
    "dlm_serve.options": (
        "pydantic",
        "pydantic_core",
        "yaml",
        "dlm_serve.decoding",
        "dlm_serve.errors",
        "dlm_serve.families",
        "dlm_serve.options",
    ),
    "dlm_serve.routing": ("numpy", "dlm_serve.decoding", "dlm_serve.routing"),
    "dlm_serve.scheduling": ("dlm_serve.decoding", "dlm_serve.routing.costs", "dlm_serve.scheduling"),
    "dlm_serve.metrics": ("dlm_serve.decoding", "dlm_serve.metrics"),
    "dlm_serve.errors": (),
    "dlm_serve.seams": (),
    "dlm_serve.training.tasks": (),
    "dlm_serve.training.layout": ("torch",),
    "dlm_serve.training.masking": ("torch", "pydantic"),
    "dlm_kernels": ("torch", "triton", "dlm_kernels"),
    "dlm_serve.client": ("httpx", "pydantic", "dlm_serve.errors"),
    "dlm_serve.evaluation": (
        "matplotlib",
        "dlm_serve.client",
        "dlm_serve.errors",
        "dlm_serve.evaluation",
        "dlm_serve.training.tasks",
    ),
    "dlm_serve.inflation": (
        "pydantic",
        "safetensors",
        "torch",
        "dlm_serve.errors",
        "dlm_serve.families",
        "dlm_serve.inflation",
        "dlm_serve.models.checkpoint",
        "dlm_serve.models.shape",
    ),
    "dlm_serve.cli": (
        "rich",
        "dlm_serve.bundled",
        "dlm_serve.cli",
        "dlm_serve.client",
        "dlm_serve.doctor",
        "dlm_serve.options",
        "dlm_serve.errors",
        "dlm_serve.evaluation",
        "dlm_serve.inflation",
        "dlm_serve.models",
        "dlm_serve.training",
    ),
}


@pytest.mark.parametrize("package", ALLOWED)
def test_pure_packages_import_only(package: str) -> None:
    files = [file for module, file in sources() if is_inside(module, (package,))]
    assert files
    wrong = {
        imported
        for file in files
        for imported in imports_of(file)
        if imported.partition(".")[0] not in STANDARD_LIBRARY and not is_inside(imported, ALLOWED[package])
    }
    assert wrong == set()


# Which packages the modules of a package may not import, because they stand above them.
SERVING = ("dlm_serve.plugin", "dlm_serve.platform", "dlm_serve.sglang")
COMMANDS = ("dlm_serve.cli", "dlm_serve.training")
FORBIDDEN = {
    "dlm_serve.models": ("dlm_serve.plugin", *COMMANDS),
    "dlm_serve.sglang.compat": ("dlm_serve.plugin", "dlm_serve.models", *COMMANDS),
    "dlm_serve.platform": ("dlm_serve.plugin", *COMMANDS),
    "dlm_serve.sglang": ("dlm_serve.plugin", *COMMANDS),
    "dlm_serve.sglang.frontend": ("dlm_serve.sglang.engine",),
    "dlm_serve.sglang.engine": ("dlm_serve.sglang.frontend",),
    "dlm_serve.options": ("dlm_serve.models", *SERVING, *COMMANDS),
    "dlm_serve.vllm": (*SERVING, *COMMANDS),
    "dlm_serve.plugin": COMMANDS,
    "dlm_serve.training": ("dlm_serve.cli", *SERVING),
}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_nothing_imports_what_stands_above_it(package: str) -> None:
    files = [file for module, file in sources() if is_inside(module, (package,))]
    assert files
    assert {i for file in files for i in imports_of(file) if is_inside(i, FORBIDDEN[package])} == set()


def test_nothing_imports_the_commands() -> None:
    importing = {
        module for module, file in sources() if any(is_inside(i, ("dlm_serve.cli",)) for i in imports_of(file))
    }
    assert "dlm_serve.__main__" in importing, "not found: the search is broken"
    assert {module for module in importing if not is_inside(module, ("dlm_serve.cli", "dlm_serve.__main__"))} == set()


def test_only_its_adapter_imports_vllm() -> None:
    engine = ("vllm", "dlm_serve.vllm")
    importing = {module for module, file in sources() if any(is_inside(i, engine) for i in imports_of(file))}
    assert importing, "none found: the search is broken"
    assert {module for module in importing if not is_inside(module, ("dlm_serve.vllm",))} == set()


def test_only_the_outer_packages_import_sglang() -> None:
    outer = ("dlm_serve.plugin", "dlm_serve.platform", "dlm_serve.models", "dlm_serve.sglang", "dlm_serve.offline")
    importing = {module for module, file in sources() if any(is_inside(i, ("sglang",)) for i in imports_of(file))}
    assert importing, "none found: the search is broken"
    assert {module for module in importing if not is_inside(module, outer)} == set()
