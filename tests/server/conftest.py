"""One server per group of tests; after each group, no KV slot may be lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from golden import RANDOM, TRAINED, WITH_ADAPTER
from serving import Server


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The checkpoint with blocks of 8, all defaults."""
    with Server(TRAINED, log=tmp_path_factory.mktemp("trained") / "log") as server:
        yield server


@pytest.fixture(scope="session")
def with_adapter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The checkpoint with blocks of 32 and its draft adapter, all defaults; its context is 1024 tokens."""
    with Server(WITH_ADAPTER, log=tmp_path_factory.mktemp("with_adapter") / "log") as server:
        yield server


@pytest.fixture(scope="session")
def without_adapter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same with the adapter off by the server's file, and SGLang's steps not overlapped."""
    folder = tmp_path_factory.mktemp("without_adapter")
    config = folder / "config.yaml"
    config.write_text("lora: {draft_adapter: none}\n")
    flags = ("--dllm-algorithm-config", str(config), "--disable-overlap-schedule")
    with Server(WITH_ADAPTER, *flags, log=folder / "log") as server:
        yield server


@pytest.fixture(scope="session")
def paged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The untrained checkpoint with KV pages as large as its blocks."""
    with Server(RANDOM, "--page-size", "8", log=tmp_path_factory.mktemp("paged") / "log") as server:
        yield server


@pytest.fixture(scope="session")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The checkpoint with blocks of 8, a pool too small for its load, and prompts prefilled in chunks."""
    flags = ("--max-total-tokens", "1400", "--chunked-prefill-size", "64", "--schedule-conservativeness", "0.05")
    with Server(TRAINED, *flags, log=tmp_path_factory.mktemp("crowded") / "log") as server:
        yield server


@pytest.fixture(autouse=True)
def _no_leak(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test that uses a server, all its KV slots are free or cached."""
    names = {"trained", "with_adapter", "without_adapter", "paged", "crowded"} & set(request.fixturenames)
    servers: list[Server] = [request.getfixturevalue(name) for name in names]
    yield
    for server in servers:
        server.assert_nothing_leaked()
