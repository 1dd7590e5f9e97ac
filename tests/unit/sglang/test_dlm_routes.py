"""Who may pin the router, and which bodies are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from processes import output_of

SCRIPT = Path(__file__).parent / "pinning.py"

BODIES: dict[str, tuple[dict[str, Any], int, str, list[Any]]] = {
    "pinned": (
        {"mode": "self_speculation", "block_length": 4},
        200,
        '{"pinned": "self_speculation/4"}',
        [["self_speculation", 4, None]],
    ),
    "pinned to one forward": (
        {"mode": "self_speculation", "budget": 64},
        200,
        '{"pinned": "self_speculation/one_forward/64"}',
        [["self_speculation", 8, 64]],
    ),
    "no such budget": ({"mode": "self_speculation", "budget": 50}, 400, "have 16, 32, 64, 96, 128", []),
    "released": ({"mode": "auto"}, 200, '{"pinned": null}', [None]),
    "not a choice": ({"mode": "diffusion"}, 400, "have auto, autoregressive, self_speculation", []),
    "no mode": ({"mode": "x"}, 400, "'autoregressive'", []),
}
KEYS: dict[str, tuple[str | None, str | None, str | None, int]] = {
    "admin, nothing sent": ("admin", None, None, 401),
    "admin, admin sent": ("admin", None, "admin", 200),
    "both, the user's sent": ("admin", "user", "user", 401),
    "a user's, nothing sent": (None, "user", None, 401),
    "a user's, sent": (None, "user", "user", 200),
}


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    """What `pinning.py` finds, by the names of the cases."""
    requests: list[tuple[Any, ...]] = [(body, None, None, None) for body, *_ in BODIES.values()]
    requests += [(BODIES["pinned"][0], admin, user, sent) for admin, user, sent, _ in KEYS.values()]
    answers = json.loads(output_of(SCRIPT, json.dumps(requests)).splitlines()[-1])
    return dict(zip([*BODIES, *KEYS], answers, strict=True))


@pytest.mark.parametrize("name", BODIES)
def test_replicas_are_told_what_is_pinned(found: dict[str, dict[str, Any]], name: str) -> None:
    _, status, words, told = BODIES[name]
    assert (found[name]["status"], found[name]["told"]) == (status, told)
    assert words in json.dumps(found[name]["answer"])


@pytest.mark.parametrize("name", KEYS)
def test_pinning_needs_the_admin_key_where_there_is_one(found: dict[str, dict[str, Any]], name: str) -> None:
    assert found[name]["status"] == KEYS[name][-1]
