"""What a running server says of itself and of its answers, and how requests decode when it is told to."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
import requests
from golden import TRAINED
from history import assert_history_tells
from serving import Server, generate_body

import dlm_serve

PROMPT = [5, 6, 7]
MASK = 100


def status_of(server: Server) -> dict[str, Any]:
    response = requests.get(f"{server.url}/dlm/status", timeout=30)
    assert response.status_code == 200, response.text
    status: dict[str, Any] = response.json()
    return status


def test_status(trained: Server) -> None:
    before = status_of(trained)
    answer = trained.generate(PROMPT, 20, mode="diffusion", ignore_eos=True)
    status = status_of(trained)
    assert status["version"] == dlm_serve.__version__
    assert status["model"] == str(TRAINED)
    assert status["family"] == "nemotron-labs-diffusion"
    assert status["modes"] == ["self_speculation", "diffusion", "autoregressive"]
    assert (status["block_size"], status["mask_token_id"]) == (8, MASK)
    assert status["choices"] == ["autoregressive", "self_speculation/8", "self_speculation/4"]
    assert status["options"]["routing"]["widths"] == [4, 8, 16, 32]
    assert set(status["origins"].values()) == {"default"}
    told = requests.get(f"{trained.url}/server_info", timeout=30).json()["internal_states"][0]["dlm"]
    same = ("version", "sglang_version", "family", "modes", "draft_adapter", "options", "origins")
    assert {name: told[name] for name in same} == {name: status[name] for name in same}
    [replica], [earlier] = status["replicas"], before["replicas"]
    assert (replica["dp_rank"], replica["policy"]) == (None, "measured")
    assert set(replica["captured"].values()) == {0}  # on a CPU nothing is
    tokens = [found["counters"]["dlm_tokens_total"].get("diffusion", 0) for found in (earlier, replica)]
    assert tokens[1] - tokens[0] == answer["meta_info"]["completion_tokens"] == 20


def test_the_router_reports(trained: Server) -> None:
    """What it decides while the request runs; tokens are counted by the length of the blocks that decided them."""
    answer = trained.generate(PROMPT, 40, ignore_eos=True)
    state = requests.get(f"{trained.url}/server_info", timeout=30).json()["internal_states"][0]["dlm"]
    assert state["policy"] == "measured"
    assert sum(state["requests"].values()) == 1
    assert state["expected_tokens_per_s"] >= 0.9 * max(state["expected_of_each"].values()) > 0
    assert state["expected_of_each"].keys() == set(
        requests.get(f"{trained.url}/dlm/status", timeout=30).json()["choices"]
    )
    tokens = answer["meta_info"]["dlm"]["tokens"]
    assert sum(tokens.values()) == 40


@pytest.mark.parametrize(
    ("body", "way"),
    [
        ({"mode": "autoregressive"}, "autoregressive"),
        ({"mode": "self_speculation"}, "self_speculation/8"),
        ({"mode": "self_speculation", "block_length": 4}, "self_speculation/4"),
    ],
)
def test_requests_begin_as_it_is_pinned(trained: Server, body: dict[str, Any], way: str) -> None:
    try:
        assert trained.post("/dlm/routing", body).json() == {"pinned": way}
        statistics = trained.generate(PROMPT, 40, ignore_eos=True)["meta_info"]["dlm"]
        assert (statistics["tokens"], statistics["mode_switches"]) == ({way: 40}, 0)
        assert status_of(trained)["replicas"][0]["policy"] == "pinned"
    finally:
        assert trained.post("/dlm/routing", {"mode": "auto"}).json() == {"pinned": None}
    trained.generate(PROMPT, 40, ignore_eos=True)
    assert status_of(trained)["replicas"][0]["policy"] == "measured"


def test_requests_that_run_are_moved(trained: Server) -> None:
    """And their answers stay."""
    alone = trained.generate(PROMPT, 200, mode="autoregressive", ignore_eos=True)["output_ids"]
    answers: list[dict[str, Any]] = []
    body = generate_body(PROMPT, 200, ignore_eos=True)
    try:
        trained.post("/dlm/routing", {"mode": "autoregressive"})
        asking = threading.Thread(target=lambda: answers.append(trained.post("/generate", body).json()))
        asking.start()
        time.sleep(0.3)
        trained.post("/dlm/routing", {"mode": "self_speculation", "block_length": 4})
        asking.join()
    finally:
        trained.post("/dlm/routing", {"mode": "auto"})
    statistics = answers[0]["meta_info"]["dlm"]
    assert answers[0]["output_ids"] == alone
    assert list(statistics["tokens"]) == ["autoregressive", "self_speculation/4"]
    assert statistics["mode_switches"] == 1


@pytest.mark.parametrize("mode", ["autoregressive", "diffusion", "self_speculation"])
def test_an_answer_may_have_its_history(trained: Server, mode: str) -> None:
    body = generate_body([145, 20, 30], 60, mode=mode, dlm={"history": True}, ignore_eos=True)
    answer = trained.post("/generate", body).json()
    assert_history_tells(answer, MASK)
    if mode == "diffusion":
        masks = [forward["tokens"].count(MASK) for forward in answer["meta_info"]["dlm"]["history"]]
        assert max(masks) > min(masks) == 0
    without = trained.generate([145, 20, 30], 60, mode=mode, ignore_eos=True)
    assert without["output_ids"] == answer["output_ids"]
    assert "history" not in without["meta_info"]["dlm"]


def test_a_stream_has_its_history_at_its_end(trained: Server) -> None:
    body = {**generate_body(PROMPT, 30, mode="diffusion", dlm={"history": True}, ignore_eos=True), "stream": True}
    lines = trained.post("/generate", body).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert ["history" in chunk["meta_info"]["dlm"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert len(chunks) > 2


def test_retracted_requests_have_their_history(crowded: Server) -> None:
    bodies = [
        generate_body([5, 6, 7 + i], 60, mode=mode, dlm={"history": True}, ignore_eos=True)
        for i in range(4)
        for mode in ("autoregressive", "diffusion", "self_speculation")
    ]
    answers = crowded.generate_all(bodies, 12)
    for answer in answers:
        assert_history_tells(answer, MASK)
    assert sum(answer["meta_info"]["num_retractions"] for answer in answers) > 0


def test_what_cannot_be_pinned_is_refused(trained: Server) -> None:
    refused = trained.post("/dlm/routing", {"mode": "diffusion"})
    assert refused.status_code == 400
    assert "mode = 'diffusion': requests with mode auto have auto, autoregressive, self_speculation" in refused.text
