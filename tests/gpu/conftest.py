"""Servers on a GPU; without one these tests are skipped."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent
PLUGIN = Path(__file__).parent / "plugin"
sys.path[:0] = [str(ROOT / "tests" / "support"), str(PLUGIN)]

from examples import EXAMPLES, Example  # noqa: E402
from serving import Server  # noqa: E402

FLAGS = ("--dtype", "bfloat16", "--disable-prefill-cuda-graph", "--max-total-tokens", "65536")
NEMOTRON_LABS_DIFFUSION = ROOT / "tests/data/nld-trained-b32-lora"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def guarded_server(model: Path, folder: Path) -> AbstractContextManager[Server]:
    """A server whose decode steps may not wait for the device."""
    metadata = folder / "sync_guard-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: sync-guard\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text("[sglang.srt.plugins]\nsync_guard = sync_guard:register\n")
    path = os.pathsep.join([str(folder), str(PLUGIN), os.environ.get("PYTHONPATH", "")])
    return Server.launch(model, *FLAGS, log=log_of("guarded", model, folder), env={"PYTHONPATH": path})


def eager_server(model: Path, folder: Path) -> AbstractContextManager[Server]:
    """A server without CUDA graphs."""
    return Server.launch(model, *FLAGS, "--disable-decode-cuda-graph", log=log_of("eager", model, folder))


def log_of(kind: str, model: Path, folder: Path) -> Path:
    """Where a server writes its log: in `OUT`, if that is set."""
    return Path(os.environ.get("OUT", folder)) / f"{kind}-{model.name}.log"


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with guarded_server(NEMOTRON_LABS_DIFFUSION, tmp_path_factory.mktemp("guarded")) as server:
        yield server


@pytest.fixture(scope="session")
def eager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with eager_server(NEMOTRON_LABS_DIFFUSION, tmp_path_factory.mktemp("eager")) as server:
        yield server


@pytest.fixture(scope="module", params=EXAMPLES)
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Example:
    """A checkpoint of another family, and requests to it."""
    return EXAMPLES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def guarded_example(example: Example, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with guarded_server(example.model, tmp_path_factory.mktemp("guarded")) as server:
        yield server


@pytest.fixture(scope="module")
def eager_example(example: Example, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with eager_server(example.model, tmp_path_factory.mktemp("eager")) as server:
        yield server
