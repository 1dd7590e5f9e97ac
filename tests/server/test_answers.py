"""What an answer contains at the edges: stops, lengths, odd prompts, caches, streams."""

from __future__ import annotations

import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from serving import ANSWER_SECONDS, Server, generate_body

from dlm_serve.client import Client

MODES = ["autoregressive", "diffusion", "self_speculation"]
PROMPT = [145, 20, 30]
EOS, MASK = 11, 100

mode_table = pytest.mark.parametrize("mode", MODES)


def ids(server: Server, prompt: list[int], max_new_tokens: int, **options: Any) -> list[int]:
    """The output ids of one request."""
    output: list[int] = server.generate(prompt, max_new_tokens, **options)["output_ids"]
    return output


def all_ids(server: Server, bodies: list[dict[str, Any]]) -> list[list[int]]:
    """The output ids of many requests, asked at once."""
    return [answer["output_ids"] for answer in server.generate_all(bodies, len(bodies))]


@mode_table
def test_shorter_answer_is_a_prefix(trained: Server, mode: str) -> None:
    lengths = (1, 2, 7, 8, 9, 30, 40)
    *shorter, whole = all_ids(trained, [generate_body(PROMPT, n, mode=mode, ignore_eos=True) for n in lengths])
    assert shorter == [whole[:n] for n in lengths[:-1]]


@mode_table
def test_stop_token_ends_the_answer(trained: Server, mode: str) -> None:
    """The stop token is the last one returned and counted; the next request finds nothing after it in the cache."""
    positions = (0, 1, 5, 8, 13)
    prompts = [[145 + at, 20, 30] for at in positions]
    wholes = all_ids(trained, [generate_body(prompt, 24, mode=mode) for prompt in prompts])
    stops = [whole[at] for whole, at in zip(wholes, positions, strict=True)]
    expected = [whole[: whole.index(stop) + 1] for whole, stop in zip(wholes, stops, strict=True)]
    trained.flush_cache()
    bodies = [
        generate_body(prompt, 24, mode=mode, stop_token_ids=[stop]) for prompt, stop in zip(prompts, stops, strict=True)
    ]
    answers = trained.generate_all(bodies, len(bodies))
    assert [answer["output_ids"] for answer in answers] == expected
    assert [answer["meta_info"]["completion_tokens"] for answer in answers] == [len(output) for output in expected]
    ends = [answer["meta_info"]["finish_reason"] for answer in answers]
    assert ends == [{"type": "stop", "matched": stop} for stop in stops]
    follow_ups = [
        generate_body(prompt + whole, 1, mode="autoregressive") for prompt, whole in zip(prompts, wholes, strict=True)
    ]
    for answer, output in zip(trained.generate_all(follow_ups, len(follow_ups)), expected, strict=True):
        assert len(PROMPT) - 1 <= answer["meta_info"]["cached_tokens"] <= len(PROMPT) + len(output)


@mode_table
def test_stop_string(trained: Server, mode: str) -> None:
    """Inside a block and across its end, as a string and as a regular expression."""
    options: dict[str, Any] = {"mode": mode, "ignore_eos": True, "skip_special_tokens": False}
    text = trained.generate(PROMPT, 40, **options)["text"]
    readable = [at for at in range(len(text)) if text[at : at + 2].isalnum() and text[at : at + 2].isascii()]
    places = [next(at for at in readable if at >= start) for start in (4, 8, 20)]
    stops = [text[at : at + 2] for at in places for _ in range(2)]
    asked: list[dict[str, Any]] = [{("stop", "stop_regex")[i % 2]: [stop]} for i, stop in enumerate(stops)]
    answers = trained.generate_all([generate_body(PROMPT, 40, **options, **each) for each in asked], len(asked))
    for answer, stop in zip(answers, stops, strict=True):
        assert answer["text"].removesuffix(stop) == text[: text.index(stop)]
        assert answer["meta_info"]["finish_reason"]["type"] == "stop"


@mode_table
def test_the_first_of_two_stops_ends_the_answer(trained: Server, mode: str) -> None:
    """Whichever the request names first, and also where a step emits both."""
    text = trained.generate(PROMPT, 24, mode=mode, ignore_eos=True)["text"]
    places = [at for at in range(24) if text[at].isascii() and text.index(text[at]) == at]
    pairs = [(at, order) for at in itertools.pairwise(places) for order in (1, -1)]
    bodies = [
        generate_body(PROMPT, 24, mode=mode, ignore_eos=True, stop=[text[at], text[later]][::order])
        for (at, later), order in pairs
    ]
    for answer, ((at, _), _) in zip(trained.generate_all(bodies, len(bodies)), pairs, strict=True):
        assert answer["text"] == text[:at]
        assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": text[at]}


@mode_table
def test_nothing_behind_the_end_is_a_stop(trained: Server, mode: str) -> None:
    """A string that only tokens behind a stop token would complete, in the same step or later."""
    whole = trained.generate(PROMPT, 24, mode=mode, ignore_eos=True)
    text, tokens = whole["text"], whole["output_ids"]
    ends = [at for at in range(20) if tokens.index(tokens[at]) == at]
    cases = [(at, text[at + 1 :][:2]) for at in ends if text[at + 1 :][:2] not in text[: at + 2]]
    assert cases
    bodies = [generate_body(PROMPT, 24, mode=mode, stop_token_ids=[tokens[at]], stop=[stop]) for at, stop in cases]
    for answer, (at, _) in zip(trained.generate_all(bodies, len(bodies)), cases, strict=True):
        assert answer["output_ids"] == tokens[: at + 1]
        assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": tokens[at]}


@mode_table
def test_many_stop_ids(trained: Server, mode: str) -> None:
    """More than a row remembers: the host checks them all."""
    whole = ids(trained, PROMPT, 24, mode=mode)
    unused = [token for token in range(200, 320) if token not in whole][:12]
    assert ids(trained, PROMPT, 24, mode=mode, stop_token_ids=[*unused, whole[6]]) == whole[: whole.index(whole[6]) + 1]


@mode_table
def test_abort_inside_a_block(trained: Server, mode: str) -> None:
    """A client that goes away leaves nothing behind (the leak check after each test) and harms nobody."""
    expected = ids(trained, PROMPT, 20, mode=mode)
    trained.abandon(generate_body(PROMPT, 4000, mode=mode, ignore_eos=True))
    assert ids(trained, PROMPT, 20, mode=mode) == expected


def test_many_autoregressive_beside_one_block(with_adapter: Server) -> None:
    """A step of two forwards answers as each request alone, with all that SGLang's sampler does for some of them."""
    sampling: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0, "sampling_seed": 5, "top_p": 0.8},
        {"frequency_penalty": 0.7},
        {"logit_bias": {"200": 4.0}},
        {"regex": "[a-z]{16}"},
    ]
    bodies = [
        generate_body(
            [*PROMPT, 60 + i],
            24,
            mode="autoregressive",
            request={"return_logprob": True, "top_logprobs_num": 2} if i % 3 == 0 else {},
            **sampling[i % len(sampling)],
        )
        for i in range(10)
    ]
    bodies.append(generate_body(PROMPT, 100, mode="self_speculation", ignore_eos=True))
    alone = with_adapter.generate_all(bodies, 1)
    together = with_adapter.generate_all(bodies[::-1], len(bodies))[::-1]
    assert [a["output_ids"] for a in together] == [a["output_ids"] for a in alone]
    for one, other in zip(alone, together, strict=True):
        scores, others = ([entry[0] for entry in a["meta_info"].get("output_token_logprobs", [])] for a in (one, other))
        assert others == pytest.approx(scores, abs=1e-4)


def test_second_turn_after_a_stop_is_as_uncached(trained: Server) -> None:
    """What a finished diffusion request leaves in the cache is the KV of its tokens, as autoregression computes it."""
    prompts = [[145 + i, 20, 30] for i in range(len(MODES))]
    trained.forget()
    firsts = all_ids(trained, [generate_body(p, 24, mode=m) for p, m in zip(prompts, MODES, strict=True)])
    turns = [
        generate_body([*prompt, *first, 50, 60], 24, mode=mode)
        for prompt, first, mode in zip(prompts, firsts, MODES, strict=True)
    ]
    cached = trained.generate_all(turns, len(turns))
    trained.flush_cache()
    uncached = trained.generate_all(turns, len(turns))
    assert all(answer["meta_info"]["cached_tokens"] > len(PROMPT) for answer in cached)
    assert [answer["meta_info"]["cached_tokens"] for answer in uncached] == [0] * len(turns)
    assert [answer["output_ids"] for answer in cached] == [answer["output_ids"] for answer in uncached]


@mode_table
def test_prompt_wholly_in_the_cache(trained: Server, mode: str) -> None:
    prompt = list(range(150, 190))
    first = trained.generate(prompt, 20, mode=mode)
    again = trained.generate(prompt, 20, mode=mode)
    assert again["meta_info"]["cached_tokens"] == len(prompt) - 1
    assert again["output_ids"] == first["output_ids"]


ODD_PROMPTS = {
    "one token": [7],
    "eos alone": [EOS],
    "mask alone": [MASK],
    "eos and mask inside": [20, EOS, 30, MASK, MASK, EOS, 40],
    "many blocks and chunks": [14 + i % 80 for i in range(300)],
}


def test_odd_prompts(trained: Server, crowded: Server) -> None:
    """Any prompt decodes to the same tokens in both exact modes, prefilled at once or in chunks of 64."""

    def answers(server: Server, mode: str) -> dict[str, list[int]]:
        bodies = [generate_body(prompt, 20, mode=mode) for prompt in ODD_PROMPTS.values()]
        return dict(zip(ODD_PROMPTS, all_ids(server, bodies), strict=True))

    expected, diffusion = answers(trained, "autoregressive"), answers(trained, "diffusion")
    assert all(MASK not in output for output in expected.values())
    assert answers(trained, "self_speculation") == expected
    for mode, wanted in (("self_speculation", expected), ("autoregressive", expected), ("diffusion", diffusion)):
        assert answers(crowded, mode) == wanted


def test_largest_request_beside_a_neighbour(with_adapter: Server) -> None:
    """prompt + max_new_tokens at the limit of the context: served whole, and the neighbour is not disturbed."""
    limit = 991 - 2
    prompt = [14 + i % 80 for i in range(limit - 20)]
    for mode in MODES:
        bodies = [generate_body(asked, 20, mode=mode, ignore_eos=True) for asked in (prompt, [200, 201, 202])]
        alone = [answer["output_ids"] for answer in with_adapter.generate_all(bodies, 1)]
        assert [len(output) for output in alone] == [20, 20]
        assert all_ids(with_adapter, bodies) == alone


@mode_table
def test_streamed_is_whole(trained: Server, mode: str) -> None:
    """The chunks of a stream add up to the answer; none is empty, and each carries the statistics so far."""
    whole = trained.generate(PROMPT, 45, mode=mode, ignore_eos=True)
    body = generate_body(PROMPT, 45, mode=mode, ignore_eos=True, request={"stream": True})
    with requests.post(f"{trained.url}/generate", json=body, stream=True, timeout=ANSWER_SECONDS) as response:
        lines = [line for line in response.iter_lines() if line.startswith(b"data: {")]
    chunks = [json.loads(line.removeprefix(b"data: ")) for line in lines]
    lengths = [len(chunk["output_ids"]) for chunk in chunks]
    assert chunks[-1]["output_ids"] == whole["output_ids"]
    assert chunks[-1]["text"] == whole["text"]
    assert all(longer > shorter for shorter, longer in itertools.pairwise(lengths))
    forwards = [chunk["meta_info"]["dlm"]["nfe"] for chunk in chunks]
    assert forwards == sorted(set(forwards))
    assert chunks[-1]["meta_info"]["dlm"] == whole["meta_info"]["dlm"]


def test_statistics(trained: Server) -> None:
    """`meta_info.dlm`, in `/generate` and in chat with `return_meta_info`."""
    statistics = trained.generate(PROMPT, 16, mode="diffusion", ignore_eos=True)["meta_info"]["dlm"]
    assert list(statistics) == [
        "mode",
        "nfe",
        "tokens_per_forward",
        "acceptance_length",
        "block_length",
        "mode_switches",
        "tokens",
    ]
    assert statistics["mode"] == "diffusion"
    assert (statistics["mode_switches"], list(statistics["tokens"])) == (0, ["diffusion/8"])
    assert statistics["tokens_per_forward"] == round(16 / statistics["nfe"], 4)
    assert statistics["acceptance_length"] is None
    assert trained.generate(PROMPT, 1, mode="diffusion")["meta_info"]["dlm"]["tokens_per_forward"] is None
    chat = trained.post(
        "/v1/chat/completions",
        {
            "model": "default",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 8,
            "return_meta_info": True,
            "custom_params": {"dlm": {"mode": "self_speculation", "block_length": 4}},
        },
    ).json()
    statistics = chat["choices"][0]["meta_info"]["dlm"]
    assert (statistics["mode"], statistics["block_length"]) == ("self_speculation", 4)


@mode_table
def test_log_probabilities_are_those_of_decoding(trained: Server, mode: str) -> None:
    """An answer is scored as autoregressive decoding scores the tokens that it picks itself."""
    body = generate_body(PROMPT, 20, ignore_eos=True, request={"return_logprob": True})
    decoded = trained.post("/generate", body).json()["meta_info"]["output_token_logprobs"]
    client = Client(trained.url)
    answer = trained.generate(PROMPT, 20, mode=mode, ignore_eos=True)["output_ids"]
    scores = client.log_probabilities(PROMPT, answer)
    assert len(scores) == 20
    same = next((i for i, entry in enumerate(decoded) if entry[1] != answer[i]), 20)
    assert same == 20 or mode == "diffusion"
    assert scores[:same] == pytest.approx([entry[0] for entry in decoded[:same]], abs=1e-4)


def test_convergence_threshold_saves_forwards(trained: Server) -> None:
    """With a large threshold a block is fixed after its second denoising forward; 0 never stops early."""
    options = {"threshold": None, "block_length": 8}
    full = trained.generate(PROMPT, 17, mode="diffusion", dlm=options, ignore_eos=True)
    never = trained.generate(PROMPT, 17, mode="diffusion", dlm={**options, "convergence_threshold": 0}, ignore_eos=True)
    early = trained.generate(PROMPT, 17, mode="diffusion", dlm={**options, "convergence_threshold": 9}, ignore_eos=True)
    assert full["meta_info"]["dlm"]["nfe"] == never["meta_info"]["dlm"]["nfe"] == 2 * (7 + 1)
    assert early["meta_info"]["dlm"]["nfe"] == 2 * (2 + 1)


def test_others_join_and_leave(trained: Server) -> None:
    """Autoregressive steps with and without block rows beside them continue one another."""
    alone = ids(trained, PROMPT, 100, mode="autoregressive", ignore_eos=True)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ids, trained, PROMPT, 100, mode="autoregressive", ignore_eos=True)
        while not running.done():
            ids(trained, [150, 20], 10, mode="diffusion", ignore_eos=True)
            time.sleep(0.02)
    assert running.result() == alone
