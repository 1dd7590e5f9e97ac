"""Ports for servers of tests."""

from __future__ import annotations

import itertools
import os
import socket

_FIRST, _BY_WORKER = 10_000, 1_000
_numbers = itertools.count(os.getpid())


def free_port() -> int:
    """A port that nothing listens on, and that no other worker takes before the server does.

    Each worker of a parallel run has ports of its own, below those that SGLang and the system give out: what the system
    finds free for one server it may give to another, too, before the first listens.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = _FIRST + _BY_WORKER * worker + next(_numbers) % _BY_WORKER
        if _is_free(port):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
