"""One server per group of tests, each started in another of the ways that users have; none may lose a KV slot."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from free_ports import free_port
from golden import RANDOM, TRAINED, WITH_ADAPTER
from serving import RETRACTIONS, ROOT, Server


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The bundled model, by what the README's `make serve` runs."""
    port, log = free_port(), tmp_path_factory.mktemp("nano") / "log"
    # Under `make test` this is a make within another, which says what directory it enters and leaves.
    command = ("make", "-n", "--no-print-directory", "serve", f"FLAGS=--port {port}")
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    _, *arguments = shlex.split(made.stdout.splitlines()[-1])
    with Server.python(*arguments, port=port, log=log) as server:
        yield server


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`python -m sglang.launch_server --model-path DIR` with blocks of 8, and nothing else said."""
    with Server.launch(TRAINED, log=tmp_path_factory.mktemp("trained") / "log") as server:
        yield server


@pytest.fixture(scope="session")
def with_adapter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Blocks of 32, a draft adapter, a context that leaves no slack in rounded-up buffers, and parsers of both kinds.

    Without a GPU the router has budgets to choose from only where the server file names some.
    """
    folder = tmp_path_factory.mktemp("with_adapter")
    config = folder / "config.yaml"
    config.write_text("routing: {budgets: [16, 32, 64]}\n")
    parsers = ("--reasoning-parser", "qwen3", "--tool-call-parser", "glm45")
    flags = ("--context-length", "991", "--constrained-json-disable-any-whitespace", "--served-model-name", "tiny")
    with Server.launch(
        WITH_ADAPTER, *parsers, *flags, "--dllm-algorithm-config", str(config), log=folder / "log"
    ) as server:
        yield server


@pytest.fixture(scope="session")
def without_adapter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same checkpoint by hub id and revision, from the local cache and offline; adapter and overlap are off.

    Groups of a forward that drafts and verifies begin with a copy.
    """
    folder = tmp_path_factory.mktemp("without_adapter")
    config = folder / "config.yaml"
    config.write_text("lora: {draft_adapter: none}\ngeneration: {group_form: copy_led}\n")
    cache = {"HF_HUB_CACHE": str(_hub_cache(folder, "acme/tiny-dlm", "v1", WITH_ADAPTER))}
    flags = ("--revision", "v1", "--dllm-algorithm-config", str(config), "--disable-overlap-schedule")
    with Server.launch("acme/tiny-dlm", *flags, log=folder / "log", env=cache) as server:
        yield server


@pytest.fixture(scope="session")
def paged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`sglang serve` of the untrained checkpoint with KV pages as large as its blocks, greedy unless a request says."""
    port, log = free_port(), tmp_path_factory.mktemp("paged") / "log"
    sglang = str(Path(sys.executable).parent / "sglang")
    preferred = ("--preferred-sampling-params", '{"top_k": 1}')
    flags = ("--model-path", str(RANDOM), "--port", str(port), "--page-size", "8", *preferred)
    with Server.python(sglang, "serve", *flags, port=port, log=log) as server:
        yield server


@pytest.fixture(scope="session")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The checkpoint with blocks of 8, a pool too small for its load, and prompts prefilled in chunks.

    Besides, SGLang's own test switches retract a request at every third forward, and audit the pool before every
    step: each slot is free, cached or held, and none of those twice. Prompts come as soon as there is room, so that it
    is soon gone. It counts for Prometheus, too.
    """
    pool = ("--max-total-tokens", "1400", "--chunked-prefill-size", "64", "--schedule-conservativeness", "0.05")
    soon = ("--prefill-decode-interval", "0")
    metrics = ("--enable-metrics", "--enable-request-time-stats-logging")
    with Server.launch(
        TRAINED, *pool, *soon, *metrics, log=tmp_path_factory.mktemp("crowded") / "log", env=RETRACTIONS
    ) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_leak(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test that uses a server, all its KV slots are free or cached."""
    names = {"nano", "trained", "with_adapter", "without_adapter", "paged", "crowded"} & set(request.fixturenames)
    servers: list[Server] = [request.getfixturevalue(name) for name in names]
    yield
    for server in servers:
        server.assert_nothing_leaked()


def _hub_cache(folder: Path, model_id: str, revision: str, model: Path) -> Path:
    """A Hugging Face cache below `folder` that holds `model` as `model_id`."""
    commit = "0" * 40
    repository = folder / "hub" / f"models--{model_id.replace('/', '--')}"
    shutil.copytree(model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / revision).write_text(commit)
    return repository.parent
