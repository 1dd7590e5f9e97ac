"""Child processes for `multiprocessing` that are forked before they are needed.

They take the place of `spawn`'s, which start an interpreter and import everything anew: both begin without what the
parent has done since.
"""

from __future__ import annotations

import io
import multiprocessing.context
import multiprocessing.forkserver
import multiprocessing.util
import os
import pickle
import socket
from multiprocessing import popen_fork, popen_forkserver, popen_spawn_posix, reduction, resource_tracker, spawn
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

# What `multiprocessing` does not publish.
_context: Any = multiprocessing.context
_util: Any = multiprocessing.util
_forkserver: Any = multiprocessing.forkserver

MAX_DESCRIPTORS = 64
_SIZE = 8


class _Spare(NamedTuple):
    pid: int
    connection: socket.socket
    ended: int
    """Readable once the process has ended, which alone holds the other end."""


_spares: list[_Spare] = []


def fork_spares(number: int, number_of_each: int = 0) -> None:
    """Fork so many processes, which have spares of their own, and let the start method `spawn` use them first."""
    resource_tracker.ensure_running()
    for _ in range(number):
        ours, theirs = socket.socketpair()
        ended, alive = os.pipe()
        pid = os.fork()
        if pid == 0:
            ours.close()
            os.close(ended)
            for spare in _spares:
                spare.connection.close()
                os.close(spare.ended)
            _spares.clear()
            if number_of_each:
                fork_spares(number_of_each)
            _become_process(theirs)
        theirs.close()
        os.close(alive)
        _spares.append(_Spare(pid, ours, ended))
    _context._concrete_contexts["spawn"] = _Context()


def _become_process(connection: socket.socket) -> None:
    """Wait for a process object, and be it."""
    code = 1
    try:
        header = connection.recv(_SIZE, socket.MSG_WAITALL)
        if not header:
            os._exit(0)
        count, size = header[0], int.from_bytes(header[1:])
        _forkserver._forkserver._inherited_fds = reduction.recvfds(connection, count) if count else []
        received = io.BytesIO(connection.recv(size, socket.MSG_WAITALL))
        connection.close()
        environment, preparation = pickle.load(received), pickle.load(received)
        os.environ.clear()
        os.environ.update(environment)
        spawn.prepare(preparation)
        code = pickle.load(received)._bootstrap()
    finally:
        _util._flush_std_streams()
        os._exit(code)


class _Popen(popen_fork.Popen):
    """Hands a process object to a spare process, as `forkserver` does to its server's."""

    method = "spawn"
    DupFd = popen_forkserver._DupFd

    def __init__(self, process: BaseProcess) -> None:
        self._descriptors: list[int] = []
        super().__init__(process)

    def duplicate_for_child(self, descriptor: int) -> int:
        self._descriptors.append(descriptor)
        return len(self._descriptors) - 1

    def _launch(self, process: BaseProcess) -> None:
        buffer = io.BytesIO()
        reduction.dump(dict(os.environ), buffer)
        _context.set_spawning_popen(self)
        try:
            reduction.dump(spawn.get_preparation_data(process.name), buffer)
            reduction.dump(process, buffer)
        finally:
            _context.set_spawning_popen(None)
        self.pid, connection, self.sentinel = _spares.pop(0)
        self.finalizer = _util.Finalize(self, _util.close_fds, (self.sentinel,))
        count = len(self._descriptors)
        assert count <= MAX_DESCRIPTORS
        with connection:
            connection.sendall(bytes([count]) + len(buffer.getbuffer()).to_bytes(_SIZE - 1))
            if count:
                reduction.sendfds(connection, self._descriptors)
            connection.sendall(buffer.getbuffer())


class _Process(multiprocessing.context.SpawnProcess):
    @staticmethod
    def _Popen(process: BaseProcess) -> Any:  # noqa: N802  # multiprocessing's name
        return _Popen(process) if _spares else popen_spawn_posix.Popen(process)


class _Context(multiprocessing.context.SpawnContext):
    Process = _Process
