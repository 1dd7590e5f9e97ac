"""What all tests share, and how they are divided over the workers of a parallel run."""

from __future__ import annotations

import os
from typing import Any

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

collect_ignore = ["clients", "vllm"]
"""What `make test-clients` and `make test-vllm` run, in other environments."""

SHARED_SERVERS = {
    "tests/server/test_answers.py": "trained",
    "tests/server/test_fuzz.py": "trained",
    "tests/server/test_golden.py": "trained",
    "tests/server/test_logits.py": "trained",
    "tests/server/test_metrics.py": "trained",
    "tests/server/test_one_forward.py": "trained",
    "tests/server/test_profile.py": "trained",
    "tests/server/test_refusals.py": "trained",
    "tests/server/test_routes.py": "trained",
    "tests/server/test_sampling_modes.py": "trained",
    "tests/server/test_status.py": "trained",
    "tests/server/test_streams.py": "trained",
    "tests/server/test_thinking.py": "trained",
    "tests/server/test_weights.py": "trained",
    "tests/server/test_commands.py": "nano",
    "tests/server/test_page_in_browser.py": "nano",
    "tests/server/test_readme.py": "nano",
}
"""Files whose tests use the same servers: they run in one worker, which starts each server once."""

FIRST = (
    "trained",
    "tests/families/test_two_ranks.py",
    "tests/families/test_efficient_dlm.py",
    "tests/families/test_sdlm.py",
    "nano",
    "tests/families/test_bd3lm.py",
    "tests/families/test_small_pool.py",
)
"""The groups that take longest, in this order: what is left for the end is short, so that workers end together."""


def group_of(nodeid: str) -> str:
    """What runs in one worker: the tests of one file, or of several that share servers."""
    file = nodeid.partition("::")[0]
    return SHARED_SERVERS.get(file, file)


def pytest_configure(config: pytest.Config) -> None:
    """Let what the workers share be imported while they collect."""
    if config.getoption("numprocesses", None):
        shared_address(users_environment())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by groups; workers take them in this order."""
    order = {group: number for number, group in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(group_of(item.nodeid), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Divide a parallel run by `group_of`.

    xdist's own way, marks and `--dist loadgroup`, silently divides by single tests under pytest 9.2 (its issue 1386).
    """
    from xdist.scheduler import LoadScopeScheduling

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = group_of
    return scheduler


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels are checked."""
    return torch.device("cuda" if ON_GPU else "cpu")
