"""Requests that ask for anything that may be combined: streamed in a crowd that is retracted = whole, alone and calm.

What decodes by self-speculation in the crowd decodes autoregressively alone.
"""

from __future__ import annotations

import itertools
import json
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from serving import Server, generate_body

NUMBER = 120
CONCURRENCY = 16

WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"mode": "autoregressive"},
    {"mode": "self_speculation"},
    {"mode": "self_speculation", "block_length": 3},
    {"mode": "self_speculation", "speculation": "one_forward", "budget": 48},
    {"mode": "self_speculation", "speculation": "one_forward", "budget": 16},
)
"""All that answer as autoregression does."""

GRAMMARS: tuple[dict[str, Any], ...] = (
    {"regex": "[a-z ]{10,40}"},
    {"regex": "(ab|cd)*e?"},
    {"regex": "[0-9]{3}-[0-9]{2}"},
    {"json_schema": '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'},
    {"ebnf": 'root ::= ""'},
)
LOGPROBS = ("input_token_logprobs", "input_top_logprobs", "output_token_logprobs", "output_top_logprobs")


@dataclass(frozen=True)
class Drawn:
    """A request in two ways that must have the same answer."""

    alone: dict[str, Any]
    beside: dict[str, Any]


def drawn(number: int) -> Drawn:
    """The request of that number."""
    rng = random.Random(number)
    diffuses = rng.random() < 0.3
    prompt = [rng.randrange(5, 250) for _ in range(rng.choice([1, 3, 9, 17, 48]))]
    length = rng.choice([1, 2, 5, 16, 48])
    sampling = _sampling(rng, number) | ({} if diffuses else _rules(rng, length))
    request = _logprobs(rng)
    if diffuses:
        dlm = {"mode": "diffusion", "block_length": rng.choice([2, 4, 8]), "threshold": rng.choice([0.3, 0.6, 0.9])}
        body = generate_body(prompt, length, dlm=dlm, request=request, **sampling)
        return Drawn(body, body)
    alone, beside = (
        generate_body(prompt, length, dlm=dlm, request=request, **sampling) for dlm in (WAYS[1], rng.choice(WAYS))
    )
    return Drawn(alone, beside)


def _sampling(rng: random.Random, seed: int) -> dict[str, Any]:
    """How tokens are drawn, and what ends an answer."""
    return {
        **({"temperature": rng.choice([0.5, 1.0, 1.3]), "sampling_seed": seed} if rng.random() < 0.5 else {}),
        **({"top_p": 0.8} if rng.random() < 0.2 else {}),
        **({"top_k": 5} if rng.random() < 0.2 else {}),
        **({"ignore_eos": True} if rng.random() < 0.6 else {}),
        **({"stop": [rng.choice("abcde 1")]} if rng.random() < 0.2 else {}),
        **({"stop_token_ids": rng.sample(range(5, 250), 4)} if rng.random() < 0.2 else {}),
    }


def _rules(rng: random.Random, length: int) -> dict[str, Any]:
    """What changes the logits, for an answer of at most `length` tokens."""
    return {
        **({"frequency_penalty": rng.choice([0.7, -0.5])} if rng.random() < 0.2 else {}),
        **({"presence_penalty": 0.8} if rng.random() < 0.2 else {}),
        **({"repetition_penalty": 1.3} if rng.random() < 0.2 else {}),
        **({"logit_bias": {str(rng.randrange(5, 250)): rng.choice([-100, 5])}} if rng.random() < 0.2 else {}),
        # A grammar may end sooner than an answer of a least length.
        **(rng.choice([*GRAMMARS, {"min_new_tokens": min(5, length)}]) if rng.random() < 0.4 else {}),
    }


def _logprobs(rng: random.Random) -> dict[str, Any]:
    """What is asked beside the answer."""
    if rng.random() < 0.5:
        return {}
    return {"return_logprob": True, "top_logprobs_num": rng.choice([0, 2]), "logprob_start_len": rng.choice([-1, 0])}


def streamed(server: Server, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The pieces of an answer, each with all before it."""
    lines = server.post("/generate", {**body, "stream": True}).text.split("\n\n")
    assert lines[-2] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_streamed_in_a_crowd_is_whole_and_alone(trained: Server, crowded: Server) -> None:
    requests = [drawn(number) for number in range(NUMBER)]
    expected = trained.generate_all([request.alone for request in requests], 1)
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        answers = list(pool.map(lambda request: streamed(crowded, request.beside), requests))
    for request, pieces, whole in zip(requests, answers, expected, strict=True):
        for before, after in itertools.pairwise(pieces):
            assert after["text"].startswith(before["text"]), request
        assert_same(pieces[-1], whole, request)
    assert sum(pieces[-1]["meta_info"]["num_retractions"] for pieces in answers) > 0


def assert_same(found: dict[str, Any], expected: dict[str, Any], request: Drawn) -> None:
    """The two have the same tokens, end for the same reason, and are as likely."""
    meta, of_expected = found["meta_info"], expected["meta_info"]
    assert (found["text"], found["output_ids"]) == (expected["text"], expected["output_ids"]), request
    for name in ("finish_reason", "prompt_tokens", "completion_tokens"):
        assert meta[name] == of_expected[name], request
    for name in LOGPROBS:
        assert numbers(meta.get(name)) == pytest.approx(numbers(of_expected.get(name)), abs=2e-4), request


def numbers(found: Any) -> list[float]:
    """All numbers in a nest of lists: log-probabilities and token ids."""
    if isinstance(found, list):
        return [number for each in found for number in numbers(each)]
    return [found] if isinstance(found, int | float) else []
