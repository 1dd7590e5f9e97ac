"""SDLM against its authors' decoding, and what follows from windows of which a part is taken."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import DATA
from golden import SDLM as GOLDEN
from history import assert_history_tells
from safetensors.torch import load_file
from serving import AUDITS, Server, generate_body
from transformers import Qwen2Config, Qwen2ForCausalLM

WINDOWS_OF_4, WINDOWS_OF_8 = DATA / "sdlm" / "sdlm-d4-tied", DATA / "sdlm" / "sdlm-d8-untied"
CONFIDENCE = ("prob_conf", "prob_conf_first_only", "entropy_conf")
PROMPT = [83, 233, 106, 184, 65, 182, 152, 41, 149, 159, 25, 193, 55, 60, 57, 7, 236, 23]
CONTEXT = 603

ALGORITHMS: dict[str, dict[str, Any]] = {
    "windows": {"mode": "diffusion", "dlm": {"threshold": 0.5}},
    "entropy": {"mode": "diffusion", "dlm": {"algorithm": "entropy_conf", "threshold": 0.5}},
    "long windows": {"mode": "diffusion", "dlm": {"block_length": 8, "threshold": 0.3}},
    "drafts": {"mode": "diffusion", "dlm": {"algorithm": "self_speculative"}},
    "one by one": {"mode": "autoregressive"},
}
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Windows of 4, by the path alone, its pool audited before every step."""
    with Server.launch(WINDOWS_OF_4, log=tmp_path_factory.mktemp("sdlm") / "log", env=AUDITS) as started:
        yield started


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Windows of 8, pages of 8, steps one after the other, and a context that leaves no slack in rounded-up buffers."""
    flags = ("--page-size", "8", "--disable-overlap-schedule", "--context-length", str(CONTEXT))
    with Server.launch(WINDOWS_OF_8, *flags, log=tmp_path_factory.mktemp("wide") / "log", env=AUDITS) as started:
        yield started


@pytest.fixture(autouse=True)
def _no_leak(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test nothing is lost of the servers it used."""
    yield
    for name in {"server", "wide"} & set(request.fixturenames):
        request.getfixturevalue(name).assert_nothing_leaked()


# --- The reference ---


def test_windows_of_4(server: Server) -> None:
    """And of 8, twice of what it was trained with; many at a time, of all lengths and thresholds."""
    reference = GOLDEN.cases(WINDOWS_OF_4, *CONFIDENCE)
    assert GOLDEN.differences(reference, GOLDEN.ask(server, reference)) == []


def test_verified_drafts_of_4(server: Server) -> None:
    reference = GOLDEN.cases(WINDOWS_OF_4, "self_speculative")
    assert GOLDEN.differences(reference, GOLDEN.ask(server, reference)) == []


def test_windows_of_8(wide: Server) -> None:
    reference = GOLDEN.cases(WINDOWS_OF_8, *CONFIDENCE)[::2]
    assert GOLDEN.differences(reference, GOLDEN.ask(wide, reference)) == []


def test_verified_drafts_of_8(wide: Server) -> None:
    reference = GOLDEN.cases(WINDOWS_OF_8, "self_speculative")
    assert GOLDEN.differences(reference, GOLDEN.ask(wide, reference)) == []


# --- Answers ---


def test_defaults(server: Server) -> None:
    """`prob_conf` with the trained length and a threshold of 0.9; also for a chat."""
    answer = server.generate(PROMPT, 20)
    said = {"algorithm": "prob_conf", "threshold": 0.9, "block_length": 4}
    assert answer["output_ids"] == server.generate(PROMPT, 20, mode="diffusion", dlm=said)["output_ids"]
    statistics = answer["meta_info"]["dlm"]
    assert (statistics["mode"], statistics["block_length"]) == ("diffusion", 4)
    chat = {"model": "default", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    assert server.post("/v1/chat/completions", chat).status_code == 200


def test_one_by_one_is_the_causal_model(server: Server) -> None:
    """Mode autoregressive answers as Transformers' Qwen2 does, whose weights these are."""
    config = json.loads((WINDOWS_OF_4 / "config.json").read_text())
    fields = {name: value for name, value in config.items() if name not in ("model_type", "architectures")}
    model = Qwen2ForCausalLM(Qwen2Config(**fields)).float().eval()
    model.load_state_dict(load_file(WINDOWS_OF_4 / "model.safetensors"), strict=False)
    prompts = [PROMPT[:length] for length in (1, 5, len(PROMPT))]
    bodies = [generate_body(prompt, 30, mode="autoregressive", ignore_eos=True) for prompt in prompts]
    answers = [answer["output_ids"] for answer in server.generate_all(bodies, len(bodies))]
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        assert answer == logits.argmax(-1).tolist()


@each_algorithm
def test_shorter_answer_is_a_prefix(server: Server, algorithm: str) -> None:
    lengths = (1, 4, 5, 30, 40)
    asked = [generate_body(PROMPT, length, ignore_eos=True, **ALGORITHMS[algorithm]) for length in lengths]
    *shorter, whole = [answer["output_ids"] for answer in server.generate_all(asked, len(asked))]
    assert shorter == [whole[:length] for length in lengths[:-1]]


@each_algorithm
def test_stop_token(server: Server, algorithm: str) -> None:
    options = ALGORITHMS[algorithm]
    whole = server.generate(PROMPT, 24, ignore_eos=True, **options)["output_ids"]
    stops = [whole[position] for position in (0, 2, 9)]
    asked = [generate_body(PROMPT, 24, ignore_eos=False, stop_token_ids=[stop], **options) for stop in stops]
    answers = server.generate_all(asked, len(asked))
    assert [answer["output_ids"] for answer in answers] == [whole[: whole.index(stop) + 1] for stop in stops]


@each_algorithm
def test_abort(server: Server, algorithm: str) -> None:
    """A client that goes away leaves nothing behind (the leak check after each test) and harms nobody."""
    options = ALGORITHMS[algorithm]
    expected = server.generate(PROMPT, 20, **options)["output_ids"]
    server.abandon(generate_body(PROMPT, 4000, ignore_eos=True, **options))
    assert server.generate(PROMPT, 20, **options)["output_ids"] == expected


@pytest.mark.parametrize("algorithm", ["prob_conf", "self_speculative"])
def test_the_whole_context_is_usable(wide: Server, algorithm: str) -> None:
    """The last rows reach past the context, of requests whose slots lie beside each other."""
    options = {"algorithm": algorithm, "block_length": 16, **({"threshold": 0.0} if algorithm == "prob_conf" else {})}
    bodies = [
        generate_body([*PROMPT * 33][: CONTEXT - 2 - num], num, ignore_eos=True, mode="diffusion", dlm=options)
        for num in (9, 33)
    ]
    alone = [answer["output_ids"] for answer in wide.generate_all(bodies, 1)]
    wide.flush_cache()
    assert [answer["output_ids"] for answer in wide.generate_all(bodies, len(bodies))] == alone
    assert [len(ids) for ids in alone] == [9, 33]


def test_mixed_batch_is_as_alone(server: Server) -> None:
    """All algorithms and the autoregressive mode, prompts and answers of many lengths, greedy and sampled."""
    sampled: dict[str, Any] = {"temperature": 0.9, "sampling_seed": 4}
    mixed = itertools.product((1, 5, len(PROMPT)), ALGORITHMS.values())
    bodies = [
        generate_body(PROMPT[:num], 10 + i, ignore_eos=True, **options, **(sampled if i % 2 else {}))
        for i, (num, options) in enumerate(mixed)
    ]
    alone = [answer["output_ids"] for answer in server.generate_all(bodies, 1)]
    together = [answer["output_ids"] for answer in server.generate_all(bodies, len(bodies))]
    assert together == alone


def test_sampled_drafts_answer_as_one_token_per_window(server: Server) -> None:
    """The same noise at each position: what is verified does not depend on how it was drafted."""
    sampling: dict[str, Any] = {"temperature": 1.0, "sampling_seed": 9, "ignore_eos": True, "mode": "diffusion"}
    drafted = server.generate(PROMPT, 40, dlm={"algorithm": "self_speculative"}, **sampling)["output_ids"]
    assert drafted == server.generate(PROMPT, 40, dlm={"threshold": 1.0}, **sampling)["output_ids"]


# --- KV that several requests share ---


@each_algorithm
def test_next_turn_is_as_uncached(server: Server, algorithm: str) -> None:
    """The cache holds no token whose KV the next step would have written: at whatever point of a run an answer ended.

    Log-probabilities of the next turn tell what its prefix was encoded with.
    """
    options = {"ignore_eos": True, **ALGORITHMS[algorithm]}
    lengths = (1, 2, 6, 22, 23)
    prompts = [[30 + length, *PROMPT[1:]] for length in lengths]  # which share nothing
    server.forget()
    asked = [generate_body(prompt, length, **options) for prompt, length in zip(prompts, lengths, strict=True)]
    firsts = [answer["output_ids"] for answer in server.generate_all(asked, len(asked))]
    turns = [
        generate_body(
            [*prompt, *first, 50, 60, 50], 6, ignore_eos=True, mode="autoregressive", request={"return_logprob": True}
        )
        for prompt, first in zip(prompts, firsts, strict=True)
    ]
    cached = server.generate_all(turns, len(turns))
    server.flush_cache()
    uncached = server.generate_all(turns, len(turns))
    assert [answer["output_ids"] for answer in cached] == [answer["output_ids"] for answer in uncached]
    for length, reused, fresh in zip(lengths, cached, uncached, strict=True):
        assert len(PROMPT) - 1 <= reused["meta_info"]["cached_tokens"] <= len(PROMPT) + length
        assert fresh["meta_info"]["cached_tokens"] == 0
        ours, theirs = ([entry[0] for entry in each["meta_info"]["output_token_logprobs"]] for each in (reused, fresh))
        assert ours == pytest.approx(theirs, abs=1e-4)


@each_algorithm
def test_answers_are_reused(server: Server, algorithm: str) -> None:
    """All of an answer but its last run comes from the cache."""
    server.flush_cache()
    first = server.generate(PROMPT, 24, ignore_eos=True, **ALGORITHMS[algorithm])["output_ids"]
    again = server.generate(PROMPT + first, 1, mode="autoregressive")
    assert again["meta_info"]["cached_tokens"] >= len(PROMPT) + len(first) - 1 - 8


# --- Refusals ---


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"mode": "self_speculation"}, ["dlm.mode", "self_speculation", "autoregressive", "self_speculative"]),
        ({"dlm": {"block_length": 9}}, ["dlm.block_length", "9", "at most 8", "twice", "block_size"]),
        ({"dlm": {"threshold": None}}, ["dlm.threshold", "None", "schedule", "number"]),
        ({"dlm": {"steps": 2}}, ["dlm.steps", "2", "one forward", "leave it out"]),
        ({"dlm": {"convergence_threshold": 0.1}}, ["dlm.convergence_threshold", "0.1", "one forward"]),
        ({"dlm": {"algorithm": "first_hitting"}}, ["dlm.algorithm", "first_hitting", "prob_conf, entropy_conf"]),
        (
            {"dlm": {"algorithm": "self_speculative", "threshold": 0.9}},
            ["dlm.threshold", "0.9", "self_speculative", "leave it out"],
        ),
        ({"mode": "diffusion", "regex": "[ab]+"}, ["dlm.mode", "diffusion", "regex", "autoregressive"]),
        ({"mode": "autoregressive", "dlm": {"algorithm": "prob_conf"}}, ["dlm.algorithm", "autoregressive"]),
    ],
    ids=str,
)
def test_refusals(server: Server, asked: dict[str, Any], words: list[str]) -> None:
    response = server.post("/generate", generate_body(PROMPT, 4, **asked))
    assert response.status_code == 400
    assert all(word in response.text for word in words), response.text


def test_a_grammar_is_honoured_by_one_token_at_a_time(server: Server) -> None:
    answer = server.generate(PROMPT, 8, regex="[ab]+")
    assert answer["meta_info"]["dlm"]["mode"] == "autoregressive"
    assert set(answer["text"]) <= {"a", "b"}


def test_a_server_file_that_cannot_be_followed(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("generation: {steps: 2}")
    flags = ("--dllm-algorithm-config", str(tmp_path / "config.yaml"))
    with pytest.raises(RuntimeError) as ended, Server.launch(WINDOWS_OF_4, *flags, log=tmp_path / "log"):
        pass
    assert "generation.steps = 2" in str(ended.value)


@each_algorithm
def test_history(server: Server, algorithm: str) -> None:
    options = ALGORITHMS[algorithm]
    asked = {**options, "dlm": {**options.get("dlm", {}), "history": True}}
    assert_history_tells(server.generate(PROMPT, 40, **asked), 291)
