"""Sampling through the server: seeds, samples, and the distribution of self-speculation."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from scipy import stats
from serving import Server, generate_body

MODES = ["autoregressive", "diffusion", "self_speculation"]
PROMPT = [145, 20, 30]
HOT: dict[str, Any] = {"temperature": 3.0, "top_p": 0.95, "ignore_eos": True}

SETTINGS = [
    pytest.param({"temperature": 2.0}, id="temperature"),
    pytest.param({"temperature": 3.0, "top_p": 0.8}, id="top_p"),
    pytest.param({"temperature": 2.5, "top_k": 5}, id="top_k"),
    pytest.param({"temperature": 3.0, "min_p": 0.02, "top_k": 20}, id="min_p"),
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_seeded_self_speculation_is_seeded_autoregression(trained: Server, settings: dict[str, Any]) -> None:
    def outputs(mode: str, **dlm: Any) -> list[list[int]]:
        bodies = [
            generate_body(PROMPT, 32, mode=mode, dlm=dlm, ignore_eos=True, sampling_seed=seed, **settings)
            for seed in range(8)
        ]
        return [answer["output_ids"] for answer in trained.generate_all(bodies, len(bodies))]

    autoregressive = outputs("autoregressive")
    assert outputs("self_speculation") == autoregressive
    assert outputs("self_speculation", speculation="one_forward", budget=24) == autoregressive
    assert len({tuple(output) for output in autoregressive}) > 4


def test_batched_with_other_settings_is_alone(trained: Server, crowded: Server) -> None:
    """Modes, block lengths, thresholds and sampling settings mixed in one batch, and with requests retracted."""
    bodies = [
        generate_body(
            [150 + i, 20, 30],
            40,
            mode=MODES[i % 3],
            dlm={} if MODES[i % 3] == "autoregressive" else {"block_length": [3, 8, 16, 1][i % 4]},
            ignore_eos=True,
            sampling_seed=i,
            temperature=[0.0, 0.7, 1.2][i % 3 - i % 2],
            top_p=[1.0, 0.9][i % 2],
        )
        for i in range(12)
    ]
    alone = [answer["output_ids"] for answer in trained.generate_all(bodies, 1)]
    assert [answer["output_ids"] for answer in trained.generate_all(bodies, len(bodies))] == alone
    retracted = crowded.generate_all(bodies, 30)
    assert [answer["output_ids"] for answer in retracted] == alone
    assert sum(answer["meta_info"]["num_retractions"] for answer in retracted) > 0


@pytest.mark.parametrize("mode", MODES)
def test_samples_of_one_request(trained: Server, mode: str) -> None:
    """`n` samples differ; with a seed they come again, and the first is that of n = 1."""
    body = generate_body(PROMPT, 24, mode=mode, n=4, sampling_seed=7, **HOT)
    first, again = (trained.post("/generate", body).json() for _ in range(2))
    outputs = [answer["output_ids"] for answer in first]
    assert [answer["output_ids"] for answer in again] == outputs
    assert len({tuple(output) for output in outputs}) == 4
    assert trained.generate(PROMPT, 24, mode=mode, sampling_seed=7, **HOT)["output_ids"] == outputs[0]


def test_seed_of_the_openai_api(trained: Server) -> None:
    body = {"model": "default", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 24, "temperature": 3.0}
    answers = [
        trained.post("/v1/chat/completions", {**body, "seed": seed}).json()["choices"][0]["message"]["content"]
        for seed in (1, 1, 2)
    ]
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize("mode", MODES)
def test_without_a_seed_answers_differ(trained: Server, mode: str) -> None:
    outputs = {tuple(trained.generate(PROMPT, 24, mode=mode, **HOT)["output_ids"]) for _ in range(3)}
    assert len(outputs) == 3


def test_what_the_server_prefers(paged: Server) -> None:
    """It prefers `top_k` 1, on all routes: however hot, an answer is the greedy one, whatever the seed."""
    common = {"model": "default", "max_tokens": 24, "temperature": 3.0}
    prompts: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
        "/v1/completions": {"prompt": "hi"},
    }
    for path, prompt in prompts.items():
        first, second = (paged.post(path, {**common, **prompt, "seed": seed}).json()["choices"] for seed in (1, 2))
        assert first == second
    first, second = (paged.generate(PROMPT, 24, **HOT, sampling_seed=seed)["output_ids"] for seed in (1, 2))
    assert first == second


def test_distribution_of_self_speculation_is_autoregressive(trained: Server) -> None:
    """Chi-square of the second to fourth tokens, from different seeds in the two modes.

    The seeds are fixed, so the outcome is too; the level only says how it was chosen before the first run.
    """
    num_samples, each, level = 600, 20, 0.001

    def samples(mode: str, first_seed: int) -> list[list[int]]:
        bodies = [
            generate_body(PROMPT, 4, mode=mode, ignore_eos=True, temperature=1.4, sampling_seed=first_seed + i, n=each)
            for i in range(num_samples // each)
        ]
        with ThreadPoolExecutor(64 // each) as pool:
            answers = pool.map(lambda body: trained.post("/generate", body).json(), bodies)
        return [answer["output_ids"] for several in answers for answer in several]

    speculative, autoregressive = samples("self_speculation", 0), samples("autoregressive", 1_000_000)
    for position in (1, 2, 3):
        counts = [Counter(output[position] for output in drawn) for drawn in (speculative, autoregressive)]
        common = [token for token in counts[0] | counts[1] if counts[0][token] + counts[1][token] >= 20]
        table = [[count[token] for token in common] + [num_samples - sum(count[t] for t in common)] for count in counts]
        assert len(common) > 1
        assert stats.chi2_contingency(table).pvalue > level
