"""Self-speculation in one forward through the server: the autoregressive answers, whatever else happens."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from golden import NEMOTRON_LABS_DIFFUSION as GOLDEN
from golden import RANDOM, TRAINED, WITH_ADAPTER
from serving import Server, generate_body

BUDGETS = (8, 16, 24, 64, 128)


def one_forward(budget: int) -> dict[str, Any]:
    return {"mode": "self_speculation", "speculation": "one_forward", "budget": budget}


def asked(body: dict[str, Any], dlm: dict[str, Any]) -> dict[str, Any]:
    """The same request with other options."""
    return {**body, "sampling_params": {**body["sampling_params"], "custom_params": {"dlm": dlm}}}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("trained", TRAINED),
        ("with_adapter", WITH_ADAPTER),
        ("without_adapter", WITH_ADAPTER),  # its groups begin with a copy
        ("paged", RANDOM),
        ("crowded", TRAINED),  # retracts, and audits its pool
    ],
)
def test_recorded_answers(request: pytest.FixtureRequest, name: str, model: Path) -> None:
    """Those of the original `ar_generate`, with rows of all widths at once over a shared cache."""
    server: Server = request.getfixturevalue(name)
    reference = GOLDEN.cases(model, "ar")[::3]
    bodies = [asked(GOLDEN.body_of(case), one_forward(BUDGETS[i % len(BUDGETS)])) for i, case in enumerate(reference)]
    answers = server.generate_all(bodies, 8)
    assert [answer["output_ids"] for answer in answers] == [GOLDEN.expected_ids(case) for case in reference]
    if model != RANDOM:
        statistics = [answer["meta_info"]["dlm"] for answer in answers if answer["meta_info"]["dlm"]["nfe"]]
        assert max(each["tokens_per_forward"] for each in statistics) > 1.5, "drafts must be right at times"


def test_beside_other_modes_is_alone(trained: Server) -> None:
    ways = [
        one_forward(24),
        {"mode": "diffusion", "block_length": 8},
        one_forward(64),
        {"mode": "self_speculation", "block_length": 5},
        {"mode": "autoregressive"},
    ]
    bodies = [
        generate_body([150 + i, 20, 30], 40, dlm=ways[i % 5], ignore_eos=True, sampling_seed=i, temperature=i % 2)
        for i in range(10)
    ]
    alone = [answer["output_ids"] for answer in trained.generate_all(bodies, 1)]
    assert [answer["output_ids"] for answer in trained.generate_all(bodies, len(bodies))] == alone


def test_requests_move_between_ways_while_they_decode(with_adapter: Server) -> None:
    prompts = [[140 + i, 20, 30] for i in range(4)]
    bodies = [generate_body(prompt, 250, ignore_eos=True) for prompt in prompts]
    expected = with_adapter.generate_all([asked(body, {"mode": "autoregressive"}) for body in bodies], 4)
    pins: list[dict[str, Any]] = [
        {"mode": "self_speculation", "budget": 16},
        {"mode": "self_speculation", "budget": 64},
        {"mode": "autoregressive"},
        {"mode": "self_speculation", "budget": 32},
        {"mode": "self_speculation", "block_length": 8},
    ]
    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(with_adapter.generate_all, bodies, 4)
        while not answering.done():
            for pin in pins:
                assert with_adapter.post("/dlm/routing", pin).status_code == 200
                time.sleep(0.05)
        assert with_adapter.post("/dlm/routing", {"mode": "auto"}).status_code == 200
    answers = answering.result()
    assert [answer["output_ids"] for answer in answers] == [answer["output_ids"] for answer in expected]
    ways = {way for answer in answers for way in answer["meta_info"]["dlm"]["tokens"]}
    assert len([way for way in ways if "one_forward" in way]) > 1
    assert ways & {"autoregressive", "self_speculation/8"}
