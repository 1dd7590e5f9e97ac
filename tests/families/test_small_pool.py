"""A KV cache smaller than the context: the longest request that is let in is answered as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz import Fuzzer
from golden import DATA
from serving import Server, generate_body

CHECKPOINTS = ("efficient_dlm/edlm-b32", "sdlm/sdlm-d4-tied", "bd3lm/bd3lm-b8")
SLOTS = 700
NUM_PROMPT = 480


@pytest.fixture(scope="module", params=CHECKPOINTS)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log: Path = tmp_path_factory.mktemp("small") / "log"
    with Server.launch(DATA / request.param, "--max-total-tokens", str(SLOTS), log=log) as server:
        yield server


def test_the_longest_request(small: Server) -> None:
    """What the refusal of a longer one names is possible, asked for or left to the server."""
    prompt = [5, 6, 7] * (NUM_PROMPT // 3)
    refused = small.post("/generate", generate_body(prompt, 4000, ignore_eos=True))
    assert refused.status_code == 400
    found = re.search(rf"max_new_tokens = 4000: with {NUM_PROMPT} input tokens at most (\d+) ", refused.text)
    assert found is not None, refused.text
    assert "the KV cache holds requests of" in refused.text
    most = int(found[1])
    assert SLOTS - NUM_PROMPT - 100 < most < SLOTS - NUM_PROMPT
    for asked in (most, None):
        body = generate_body(prompt, 0, ignore_eos=True)
        body["sampling_params"]["max_new_tokens"] = asked
        assert len(small.post("/generate", body).json()["output_ids"]) == most
    assert small.post("/generate", generate_body(prompt, most + 1, ignore_eos=True)).status_code == 400
    small.assert_nothing_leaked()


def test_requests_that_do_not_fit_together(small: Server) -> None:
    """They wait for each other, or give way and resume."""
    bodies = [generate_body([5, 6, 7, 8 + i], 300, ignore_eos=True) for i in range(3)]
    assert [len(answer["output_ids"]) for answer in small.generate_all(bodies, 3)] == [300] * 3
    small.assert_nothing_leaked()


def test_random_requests(small: Server) -> None:
    """See `fuzz`."""
    assert Fuzzer(small, seed=0).run(range(40)) == []
