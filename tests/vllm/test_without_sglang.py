"""An environment without SGLang has all that the plugin for vLLM stands on."""

from __future__ import annotations

import importlib
import importlib.util
from importlib.metadata import entry_points

import pytest

MODULES = [
    "dlm_serve",
    "dlm_serve.decoding",
    "dlm_serve.families",
    "dlm_serve.options.resolve",
    "dlm_serve.models.checkpoint",
    "dlm_serve.models.configuration",
    "dlm_serve.vllm.plugin",
    "dlm_serve.vllm.model",
    "dlm_serve.vllm.scheduler",
]


def test_there_is_no_sglang() -> None:
    assert importlib.util.find_spec("sglang") is None


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_imported(module: str) -> None:
    importlib.import_module(module)


def test_vllm_finds_the_plugin() -> None:
    [found] = entry_points(group="vllm.general_plugins", name="dlm_serve")
    assert found.load().__module__ == "dlm_serve.vllm.plugin"
