"""Refuse a port in use before the model is loaded, which may take minutes; SGLang finds out afterwards."""

from __future__ import annotations

from typing import Any

from dlm_serve.errors import ConfigError
from dlm_serve.ports import why_taken
from dlm_serve.sglang.protocols import ServerArgsLike


def require_free_port(server_args: ServerArgsLike, *_: Any, **__: Any) -> None:
    """Before `launch_server`: raise ConfigError if the HTTP server could not listen."""
    if server_args.node_rank > 0:
        return  # the first node alone listens
    why = why_taken(server_args.host, server_args.port)
    if why is not None:
        limit = f"cannot be listened on at {server_args.host} ({why})"
        raise ConfigError("--port", server_args.port, limit, "end what listens there, or give another port")
