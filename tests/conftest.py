"""What all tests share, and how they are divided over the workers of a parallel run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

# Kernels run in Triton's interpreter unless a GPU is asked for. Triton reads this when it is first imported,
# and any test file may be the first to import it: so it stands here, above all of them.
ON_GPU = os.environ.get("DLM_TEST_DEVICE") == "cuda"
if not ON_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")

# On few cores, with tiny tensors, threads would only wait for each other: here and in the servers that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402
from preloaded import shared_address  # noqa: E402
from processes import users_environment  # noqa: E402

SHARED_SERVERS = {"trained": "trained", "crowded": "trained", "nano": "nano"}
"""Fixtures of servers that several files use: tests of one group run in one worker, which starts each of them once."""

FIRST = ("server-trained", "test_bd3lm", "test_sdlm", "test_efficient_dlm")
"""The groups that take longest, in this order: what is left for the end is short, so that workers end together."""


def pytest_configure(config: pytest.Config) -> None:
    """Let what the workers share be imported while they collect."""
    if config.getoption("numprocesses", None):
        shared_address(users_environment())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its group, and sort by groups."""
    groups = {item.nodeid: _group_of(item) for item in items}
    for item in items:
        item.add_marker(pytest.mark.xdist_group(groups[item.nodeid]))
    order = {group: number for number, group in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(groups[item.nodeid], len(order)))


def _group_of(item: pytest.Item) -> str:
    fixtures: Iterable[str] = getattr(item, "fixturenames", ())
    shared = next((SHARED_SERVERS[name] for name in fixtures if name in SHARED_SERVERS), None)
    return f"server-{shared}" if shared else Path(item.path).stem


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels are checked."""
    return torch.device("cuda" if ON_GPU else "cpu")
