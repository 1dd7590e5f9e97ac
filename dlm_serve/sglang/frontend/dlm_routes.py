"""The HTTP routes that dlm-serve adds to SGLang's server: what it serves and does, and how requests decode."""

from __future__ import annotations

import sys
from typing import Any

from pydantic import BaseModel, ConfigDict
from sglang.srt.managers.io_struct import SetInternalStateReq
from sglang.srt.utils.auth import AuthLevel, auth_level

from dlm_serve.decoding import name_of
from dlm_serve.errors import ServerError
from dlm_serve.options.pin import Pin
from dlm_serve.sglang.frontend.page import add_page
from dlm_serve.sglang.frontend.refusals import HTTP_SERVER
from dlm_serve.sglang.serving import PIN, STATISTICS_KEY, Described


class _Answer(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Replica(_Answer):
    """What one replica does."""

    dp_rank: int | None = None
    """Its number; null where there is only one."""
    policy: str
    """What chooses for requests with mode `auto`: `measured`, `rules`, or `pinned`."""
    requests: dict[str, int] = {}
    """How many of these were told to decode in each way, such as `self_speculation/8`, by the last decision."""
    expected_tokens_per_s: float | None = None
    """Tokens per second that were expected of it; null where nothing was measured."""
    expected_of_each: dict[str, float] = {}
    """What is expected where all of them decode in one way, by its name; those that are not weighed are left out."""
    switches: int = 0
    """Times that a request was told to go on in another way."""
    trials: int = 0
    """Times that a request decoded a block to find out what it yields."""
    captured: dict[int, int]
    """By width, up to how many rows run as a CUDA graph."""
    counters: dict[str, dict[str, int]]
    """The counters of `/metrics`, by name and the values of their labels."""
    counted_at: float
    """When they were read, in seconds since 1970: rates are quotients of the differences between two answers."""


class Status(Described):
    """What `GET /dlm/status` answers."""

    model: str
    """The name that the server gives its model."""
    choices: list[str]
    """What the router can be pinned to; none where requests are not moved."""
    replicas: list[Replica]


class Pinned(_Answer):
    """What `POST /dlm/routing` answers."""

    pinned: str | None
    """How requests with mode `auto` decode from now on; null leaves it to the server's policy."""


STATUS, ROUTING = "/dlm/status", "/dlm/routing"


async def status() -> Status:
    """Return what is served, with which options, and what has become of it so far."""
    manager = _manager()
    serving = manager.serving
    states = await manager.get_internal_state()
    return Status(
        **dict(serving.report()),
        model=manager.served_model_name,
        choices=[name_of(choice) for choice in serving.pins if choice] if serving.choices else [],
        replicas=[Replica(**state[STATISTICS_KEY]) for state in states],
    )


@auth_level(AuthLevel.ADMIN_OPTIONAL)  # type: ignore[untyped-decorator]  # SGLang's are not typed
async def routing(pin: Pin) -> Pinned:
    """Pin how requests with mode `auto` decode, those that run included, or release them."""
    manager = _manager()
    choice = pin.choice(manager.serving.choices)
    number = manager.serving.pins.index(choice)
    if not all(await manager.set_internal_state(SetInternalStateReq(server_args={PIN: number}))):
        raise ServerError(f"a replica refuses {choice}")
    return Pinned(pinned=None if choice is None else name_of(choice))


def add_routes() -> None:
    """Add the routes to the HTTP server, where there is one."""
    http_server = sys.modules.get(HTTP_SERVER)
    if http_server is None:
        return
    paths = {getattr(route, "path", None) for route in http_server.app.routes}
    if STATUS not in paths:  # it may serve a second engine of this process
        # Not as a router: SGLang finds no level of access in one that is included.
        http_server.app.add_api_route(STATUS, status, methods=["GET"])
        http_server.app.add_api_route(ROUTING, routing, methods=["POST"])
        add_page(http_server.app)


def _manager() -> Any:
    return sys.modules[HTTP_SERVER].get_global_state().tokenizer_manager
