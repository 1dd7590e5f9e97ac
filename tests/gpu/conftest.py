"""Servers on a GPU; without one these tests are skipped."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent
PLUGIN = Path(__file__).parent / "plugin"
sys.path[:0] = [str(ROOT / "tests" / "server"), str(PLUGIN)]

from serving import Server  # noqa: E402

FLAGS = ("--dtype", "bfloat16", "--disable-prefill-cuda-graph", "--mem-fraction-static", "0.3")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose decode steps may not wait for the device."""
    folder = tmp_path_factory.mktemp("guarded")
    metadata = folder / "sync_guard-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: sync-guard\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text("[sglang.srt.plugins]\nsync_guard = sync_guard:register\n")
    path = os.pathsep.join([str(folder), str(PLUGIN), os.environ.get("PYTHONPATH", "")])
    log = Path(os.environ.get("OUT", folder)) / "guarded.log"
    with Server.launch(ROOT / "tests/data/nld-trained-b32-lora", *FLAGS, log=log, env={"PYTHONPATH": path}) as server:
        yield server


@pytest.fixture(scope="session")
def eager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without CUDA graphs."""
    log = Path(os.environ.get("OUT", tmp_path_factory.mktemp("eager"))) / "eager.log"
    model = ROOT / "tests/data/nld-trained-b32-lora"
    with Server.launch(model, *FLAGS, "--disable-decode-cuda-graph", log=log) as server:
        yield server
