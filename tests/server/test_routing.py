"""Whatever the router does, answers stay: each is the one that the same request gets alone and autoregressively."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from golden import TRAINED
from serving import AUDITS, RETRACTIONS, Server, generate_body

RULES = "{policy: rules, rules: {short_answer: 0, most_in_blocks: 3}}"
"""Requests move whenever more or fewer than three run."""

EAGER = "{hysteresis: 0, trial_share: 1}"
"""They move whenever another split seems better by however little, by the clock of the first rank."""

PLAIN: dict[str, str] = {}
PINS: tuple[dict[str, Any], ...] = (
    {"mode": "autoregressive"},
    {"mode": "self_speculation"},
    {"mode": "auto"},
    {"mode": "self_speculation", "block_length": 8},
)

FLAGS = {
    "one at a time": (RULES, ("--disable-overlap-schedule",), PLAIN),
    "retracted": (RULES, ("--max-total-tokens", "1400", "--chunked-prefill-size", "64"), RETRACTIONS),
    "two ranks": (EAGER, ("--tp", "2"), PLAIN),
}
"""Where results come at once; where they come late and requests start over in the middle; and where ranks that moved a
row at different steps would compute different things together."""


@pytest.fixture(params=FLAGS)
def restless(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server on which requests move often."""
    routing, flags, environment = FLAGS[request.param]
    config = tmp_path / "server.yaml"
    config.write_text(f"routing: {routing}\n")
    log = tmp_path / "log"
    with Server.launch(TRAINED, "--dllm-algorithm-config", str(config), *flags, log=log, env=environment) as server:
        yield server
        server.assert_nothing_leaked()


def bodies(number: int, **options: Any) -> list[dict[str, Any]]:
    """Requests of many lengths, half of them sampled."""
    rng = random.Random(7)
    return [
        generate_body(
            [rng.randrange(5, 250) for _ in range(rng.randrange(1, 40))],
            rng.choice([1, 2, 9, 24, 60]),
            ignore_eos=True,
            temperature=0.8 if i % 2 else 0,
            sampling_seed=i,
            **options,
        )
        for i in range(number)
    ]


@contextlib.contextmanager
def pinned_to_and_fro(server: Server) -> Iterator[None]:
    """A context in which an operator pins the router to one way and another, and lets it go at the end."""
    ended, ways = threading.Event(), itertools.cycle(PINS)

    def pin() -> None:
        while not ended.wait(0.05):
            assert server.post("/dlm/routing", next(ways)).status_code == 200

    operator = threading.Thread(target=pin)
    operator.start()
    yield
    ended.set()
    operator.join()
    server.post("/dlm/routing", {"mode": "auto"})


def test_answers_stay_while_requests_move(restless: Server) -> None:
    alone = restless.generate_all(bodies(12, mode="autoregressive"), concurrency=1)
    with pinned_to_and_fro(restless):
        moved = restless.generate_all(bodies(8), concurrency=6)
    assert [answer["output_ids"] for answer in moved] == [answer["output_ids"] for answer in alone[:8]]
    statistics = [answer["meta_info"]["dlm"] for answer in moved]
    for dlm in ({}, {"threshold": 0.5}):
        moved = [
            *restless.generate_all(bodies(6, dlm=dlm), concurrency=6),
            *restless.generate_all(bodies(12, dlm=dlm)[6:], concurrency=4),
        ]
        assert [answer["output_ids"] for answer in moved] == [answer["output_ids"] for answer in alone]
        statistics += [answer["meta_info"]["dlm"] for answer in moved]
    assert sum(found["mode_switches"] for found in statistics) > 5
    assert len({name for found in statistics for name in found["tokens"]}) > 1


def test_diffusion_joins_where_it_is_allowed(tmp_path: Path) -> None:
    """Its answers are its own, so that only their lengths are known; and moved to and fro, no KV slot is lost."""
    config, log = tmp_path / "server.yaml", tmp_path / "log"
    config.write_text(f"routing: {RULES}\ngeneration: {{allow_lossy: true}}\n")
    with Server.launch(TRAINED, "--dllm-algorithm-config", str(config), log=log, env=AUDITS) as server:
        asked = bodies(16)
        answers = server.generate_all(asked[:8], concurrency=6) + server.generate_all(asked[8:], concurrency=4)
        lengths = [body["sampling_params"]["max_new_tokens"] for body in asked]
        assert [len(answer["output_ids"]) for answer in answers] == lengths
        statistics = [answer["meta_info"]["dlm"] for answer in answers]
        assert sum(found["mode_switches"] for found in statistics) > 5
        assert {name for found in statistics for name in found["tokens"]} >= {"autoregressive", "diffusion/8"}
        server.assert_nothing_leaked()
