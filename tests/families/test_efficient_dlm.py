"""Efficient-DLM against its authors' decoding, and what follows from prompts that are encoded as a whole."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from golden import DATA
from golden import EFFICIENT_DLM as GOLDEN
from history import assert_history_tells
from serving import ANSWER_SECONDS, RETRACTIONS, Server, generate_body

BLOCKS_OF_8, BLOCKS_OF_32 = DATA / "efficient_dlm" / "edlm-b8", DATA / "efficient_dlm" / "edlm-b32"
PROMPT = [106, 132, 199, 50, 7, 9, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42]
MAX_PREFILL = 600
CONTEXT = 187


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Blocks of 8, by the path alone but for a limit that is easily reached."""
    flags = ("--max-prefill-tokens", str(MAX_PREFILL))
    with Server.launch(BLOCKS_OF_8, *flags, log=tmp_path_factory.mktemp("efficient_dlm") / "log") as started:
        yield started


@pytest.fixture(scope="module")
def blocks_of_32(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Blocks of 32, in steps that do not overlap, and a context that leaves no slack in rounded-up buffers."""
    flags = ("--context-length", str(CONTEXT), "--page-size", "8", "--disable-overlap-schedule")
    with Server.launch(BLOCKS_OF_32, *flags, log=tmp_path_factory.mktemp("blocks_of_32") / "log") as started:
        yield started


@pytest.fixture(scope="module")
def block_causal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same with prompts encoded as it was trained, in chunks, and a pool too small for many requests."""
    folder = tmp_path_factory.mktemp("block_causal")
    config = folder / "config.yaml"
    config.write_text("generation: {prefill: block_causal}\n")
    pool = ("--max-total-tokens", "1600", "--schedule-conservativeness", "0.05")
    flags = ("--dllm-algorithm-config", str(config), "--chunked-prefill-size", "64", *pool)
    with Server.launch(BLOCKS_OF_8, *flags, log=folder / "log", env=RETRACTIONS) as started:
        yield started


@pytest.fixture(autouse=True)
def _no_leak(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test nothing is lost of the servers it used."""
    yield
    for name in {"server", "blocks_of_32", "block_causal"} & set(request.fixturenames):
        request.getfixturevalue(name).assert_nothing_leaked()


# --- The reference ---


def test_blocks_of_8(server: Server) -> None:
    """Many at a time, of all lengths: so a batch answers as its requests would alone."""
    reference = GOLDEN.cases(BLOCKS_OF_8)
    assert GOLDEN.differences(reference, GOLDEN.ask(server, reference)) == []


def test_blocks_of_32(blocks_of_32: Server) -> None:
    reference = GOLDEN.cases(BLOCKS_OF_32)
    assert GOLDEN.differences(reference, GOLDEN.ask(blocks_of_32, reference)) == []


# --- Answers ---


def test_defaults(server: Server) -> None:
    """Diffusion in the checkpoint's blocks, by threshold; also for a chat."""
    answer = server.generate(PROMPT, 20)
    assert answer["output_ids"] == server.generate(PROMPT, 20, dlm={"threshold": 0.9})["output_ids"]
    statistics = answer["meta_info"]["dlm"]
    assert (statistics["mode"], statistics["block_length"]) == ("diffusion", 8)
    chat = {"model": "default", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    assert server.post("/v1/chat/completions", chat).status_code == 200


def test_shorter_answer_is_a_prefix(server: Server) -> None:
    lengths = (1, 7, 8, 9, 17, 30, 40)
    asked = [generate_body(PROMPT, length, ignore_eos=True) for length in lengths]
    *shorter, whole = [answer["output_ids"] for answer in server.generate_all(asked, len(asked))]
    assert shorter == [whole[:length] for length in lengths[:-1]]


def test_stop_token(server: Server) -> None:
    """A block ends its denoising at a stop id, so what follows in it may differ; what precedes does not."""
    one_step = {"threshold": None, "steps": 1}
    whole = server.generate(PROMPT, 24, ignore_eos=True, dlm=one_step)["output_ids"]
    stops = [whole[position] for position in (0, 3, 7, 8, 13)]
    asked = [generate_body(PROMPT, 24, stop_token_ids=[stop], dlm=one_step) for stop in stops]
    answers = server.generate_all(asked, len(asked))
    assert [answer["output_ids"] for answer in answers] == [whole[: whole.index(stop) + 1] for stop in stops]


@pytest.mark.parametrize("block_length", [8, 32])
def test_largest_request_beside_neighbours(blocks_of_32: Server, block_length: int) -> None:
    """The last block reaches past the context, in rows that lie beside each other."""
    most, lengths = CONTEXT - 2, (33, 34, 50)
    bodies = [
        generate_body((PROMPT * 9)[: most - num], num, ignore_eos=True, dlm={"block_length": block_length})
        for num in lengths
    ]
    alone = [answer["output_ids"] for answer in blocks_of_32.generate_all(bodies, 1)]
    assert [len(ids) for ids in alone] == list(lengths)
    assert [answer["output_ids"] for answer in blocks_of_32.generate_all(bodies, len(bodies))] == alone


def test_stream(server: Server) -> None:
    """Chunks carry tokens, and together the answer."""
    whole = server.generate(PROMPT, 30, ignore_eos=True)
    body = generate_body(PROMPT, 30, ignore_eos=True, request={"stream": True})
    with requests.post(f"{server.url}/generate", json=body, stream=True, timeout=ANSWER_SECONDS) as response:
        lines = [line.removeprefix(b"data: ") for line in response.iter_lines() if line.startswith(b"data: {")]
    lengths = [len(json.loads(line)["output_ids"]) for line in lines]
    assert lengths == sorted(set(lengths)), "a chunk without a token"
    last = json.loads(lines[-1])
    assert (last["output_ids"], last["meta_info"]["dlm"]) == (whole["output_ids"], whole["meta_info"]["dlm"])


def test_abort_inside_a_block(server: Server) -> None:
    """A client that goes away leaves nothing behind (the leak check after each test) and harms nobody."""
    expected = server.generate(PROMPT, 20)["output_ids"]
    server.abandon(generate_body(PROMPT, 4000, ignore_eos=True))
    assert server.generate(PROMPT, 20)["output_ids"] == expected


def test_mixed_batch_is_as_alone(server: Server) -> None:
    """Prompts, blocks and answers of many lengths, greedy and sampled, a block of one token among them."""
    sampled: dict[str, Any] = {"temperature": 0.9, "sampling_seed": 4}
    lengths = itertools.product((1, 5, len(PROMPT)), (1, 3, 8, 20, 32))
    bodies = [
        generate_body(
            PROMPT[:num], length + 9, ignore_eos=True, dlm={"block_length": length}, **(sampled if i % 2 else {})
        )
        for i, (num, length) in enumerate(lengths)
    ]
    alone = [answer["output_ids"] for answer in server.generate_all(bodies, 1)]
    together = [answer["output_ids"] for answer in server.generate_all(bodies, len(bodies))]
    assert together == alone


def test_nothing_is_shared(server: Server) -> None:
    """Neither the same prompt, nor the next turn of a conversation: their KV would be another."""
    first = server.generate(PROMPT, 24)
    for prompt in (PROMPT, PROMPT + first["output_ids"] + [50, 60]):
        assert server.generate(prompt, 8)["meta_info"]["cached_tokens"] == 0
    assert server.generate(PROMPT, 24)["output_ids"] == first["output_ids"]


# --- Prompts encoded block by block ---


def test_block_causal_shares_whole_blocks(block_causal: Server) -> None:
    """Of prompts alone: blocks of an answer do not lie where they would in a prompt."""
    block_causal.forget()
    first = block_causal.generate(PROMPT, 24)["output_ids"]
    for prompt in (PROMPT, PROMPT + first + [50, 60], PROMPT[:16] + [3] * 30):
        cached = block_causal.generate(prompt, 24)
        block_causal.flush_cache()
        uncached = block_causal.generate(prompt, 24)
        assert (cached["meta_info"]["cached_tokens"], uncached["meta_info"]["cached_tokens"]) == (16, 0)
        assert cached["output_ids"] == uncached["output_ids"]


def test_block_causal_equals_the_reference_within_a_block(block_causal: Server) -> None:
    """A prompt of at most one block sees itself as a whole either way; longer ones need not answer the same."""
    reference = GOLDEN.cases(BLOCKS_OF_8)
    short = [case for case in reference if len(case["prompt_ids"]) <= 8]
    assert GOLDEN.differences(short, GOLDEN.ask(block_causal, short)) == []
    others = [case for case in reference if len(case["prompt_ids"]) > 8][::4]
    assert GOLDEN.differences(others, GOLDEN.ask(block_causal, others)) != []


def test_block_causal_chunks(block_causal: Server) -> None:
    """A prompt of several chunks, batched and alone."""
    bodies = [generate_body(PROMPT * num, 12) for num in (4, 9, 30)]
    alone = [answer["output_ids"] for answer in block_causal.generate_all(bodies, 1)]
    block_causal.flush_cache()
    assert [answer["output_ids"] for answer in block_causal.generate_all(bodies, len(bodies))] == alone


def test_block_causal_retracted_and_resumed(block_causal: Server) -> None:
    """In a pool too small for the load; the interrupted block starts over, and the prompt is encoded as before."""
    bodies = [GOLDEN.body_of(case) for case in GOLDEN.cases(BLOCKS_OF_8)[::4] if len(case["output_ids"]) > 20]
    expected = [answer["output_ids"] for answer in block_causal.generate_all(bodies, 1)]
    answers = block_causal.generate_all(bodies * 3, 40)
    assert [answer["output_ids"] for answer in answers] == expected * 3
    assert sum(answer["meta_info"]["num_retractions"] for answer in answers) > 0


# --- Refusals ---


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"mode": "autoregressive"},
            ["dlm.mode", "autoregressive", "not trained to predict the next token", "diffusion"],
        ),
        ({"mode": "self_speculation"}, ["dlm.mode", "self_speculation", "verified", "diffusion"]),
        ({"dlm": {"shift_logits": True}}, ["dlm.shift_logits", "True", "their own positions"]),
        ({"dlm": {"algorithm": "prob_conf"}}, ["dlm.algorithm", "prob_conf", "single algorithm"]),
        ({"dlm": {"steps": 9}}, ["dlm.steps", "9", "block length, 8"]),
        ({"regex": "[ab]+"}, ["regex", "autoregressive", "leave it out"]),
        ({"frequency_penalty": 0.5}, ["frequency_penalty", "autoregressive"]),
        ({"request": {"return_logprob": True}}, ["return_logprob", "autoregressive"]),
    ],
    ids=str,
)
def test_refusals(server: Server, asked: dict[str, Any], words: list[str]) -> None:
    response = server.post("/generate", generate_body(PROMPT, 4, **asked))
    assert response.status_code == 400
    assert all(word in response.text for word in words), response.text


def test_shift_logits_as_on_the_card(server: Server) -> None:
    assert server.generate(PROMPT, 4, dlm={"shift_logits": False})["meta_info"]["dlm"]["mode"] == "diffusion"


def test_a_prompt_for_more_than_one_forward_is_refused(server: Server, block_causal: Server) -> None:
    longest = [5] * MAX_PREFILL
    assert len(server.generate(longest, 9, ignore_eos=True)["output_ids"]) == 9
    words = ["prompt", f"{MAX_PREFILL + 1} tokens", f"at most {MAX_PREFILL}", "--max-prefill-tokens"]
    for stream in (False, True):
        response = server.post("/generate", generate_body([*longest, 5], 9, request={"stream": stream}))
        assert response.status_code == 400
        assert all(word in response.text for word in words), response.text
    assert len(block_causal.generate([*longest, 5], 9, ignore_eos=True)["output_ids"]) == 9


def test_history(server: Server) -> None:
    assert_history_tells(server.generate(PROMPT, 40, dlm={"history": True}, ignore_eos=True), 275)
