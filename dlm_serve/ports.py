"""Find out whether a server could listen, before it loads a model."""

from __future__ import annotations

import socket


def why_taken(host: str, port: int) -> str | None:
    """Return why nothing can listen at `host` and `port`; None if it can."""
    try:
        found, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found
        with socket.socket(family, kind, protocol) as probe:
            # As the server does: a port that was in use a moment ago is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return None
