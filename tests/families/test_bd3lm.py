"""BD3-LM through a real server: the reference's cases, and what is this family's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from golden import BD3LM as GOLDEN
from golden import DATA
from history import assert_history_tells
from serving import Server, generate_body

from dlm_serve.decoding.stop_rules import WINDOW, ended_length

BLOCKS_OF_4, BLOCKS_OF_8 = DATA / "bd3lm" / "bd3lm-b4", DATA / "bd3lm" / "bd3lm-b8"
EOS, MASK = 256, 257


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`--model-path` alone."""
    with Server.launch(BLOCKS_OF_4, log=tmp_path_factory.mktemp("bd3lm") / "log") as running:
        yield running
        running.assert_nothing_leaked()


def test_reference_cases(server: Server) -> None:
    """Many at a time over a shared prefix cache, which the reference has not."""
    reference = GOLDEN.cases(BLOCKS_OF_4)
    assert GOLDEN.differences(reference, GOLDEN.ask(server, reference)) == []
    reference = reference[::4]
    answers = GOLDEN.ask(server, reference)
    assert GOLDEN.differences(reference, answers) == []
    assert sum(answer["meta_info"]["cached_tokens"] for answer in answers) > 0
    assert all(answer["meta_info"]["cached_tokens"] % 4 == 0 for answer in answers), "a block was cut"


def test_first_hitting_takes_one_forward_per_token(server: Server) -> None:
    """And is the default; 7 tokens behind the first token of all fill two blocks, the first of which is committed."""
    answer = server.generate([EOS], 7, ignore_eos=True)
    assert answer["meta_info"]["dlm"]["nfe"] == 7 + 1
    half = server.generate([EOS], 7, ignore_eos=True, dlm={"steps": 2})
    assert half["meta_info"]["dlm"]["nfe"] == 2 + 2 + 1


def test_next_turn_reuses_whole_blocks(server: Server) -> None:
    """A second turn over the first's answer: the same as without a cache."""
    server.forget()
    first = server.generate([EOS, 11, 200], 31, ignore_eos=True, dlm={"algorithm": "confidence"})
    turn = [EOS, 11, 200, *first["output_ids"], 7, 8]
    cached = server.generate(turn, 20, ignore_eos=True, dlm={"algorithm": "confidence"})
    assert cached["meta_info"]["cached_tokens"] > 20
    server.flush_cache()
    fresh = server.generate(turn, 20, ignore_eos=True, dlm={"algorithm": "confidence"})
    assert fresh["meta_info"]["cached_tokens"] == 0
    assert cached["output_ids"] == fresh["output_ids"]


def test_completions(server: Server) -> None:
    """As on its card, from a text and from the first token alone; texts begin with that token."""
    settings = {"model": "default", "max_tokens": 40, "temperature": 0.5, "seed": 1, "ignore_eos": True}
    for prompt, num_prompt in (("Hi", 3), ("<|endoftext|>", 1), ([EOS], 1), ([EOS, 72, 105], 3)):
        answer = server.post("/v1/completions", {**settings, "prompt": prompt}).json()
        assert answer["usage"] == {**answer["usage"], "prompt_tokens": num_prompt, "completion_tokens": 40}
    assert server.generate("", 8)["meta_info"]["prompt_tokens"] == 1


def test_default_temperature(server: Server) -> None:
    """0.5, unless the request says otherwise."""

    def ids(**sampling: Any) -> list[int]:
        request = {"input_ids": [EOS], "sampling_params": {"max_new_tokens": 24, "sampling_seed": 5, **sampling}}
        answer: list[int] = server.post("/generate", request).json()["output_ids"]
        return answer

    assert ids() == ids(temperature=0.5)
    assert ids() != ids(temperature=0.0)

    def text(**sampling: Any) -> str:
        request = {"model": "default", "prompt": [EOS], "max_tokens": 24, "seed": 5, **sampling}
        found: str = server.post("/v1/completions", request).json()["choices"][0]["text"]
        return found

    assert text() == text(temperature=0.5)
    assert text() != text(temperature=0.05)


def test_upstream_stop_rule(server: Server) -> None:
    """The answer ends where the rule ends the sequence that is generated without it, after one of its blocks."""
    stops = set()
    sampling: list[dict[str, Any]] = [{"temperature": 1.0, "sampling_seed": seed} for seed in range(4)]
    bodies = [generate_body([EOS], 400, ignore_eos=True, **seeded) for seeded in sampling]
    bodies += [generate_body([EOS], 400, dlm={"stop_rule": "upstream"}, **seeded) for seeded in sampling]
    answers = server.generate_all(bodies, len(bodies))
    for whole, ended in zip(answers[:4], answers[4:], strict=True):
        tokens = [EOS, *whole["output_ids"]]
        lengths = (ended_length(tokens[:n], EOS) for n in range(WINDOW + 4, len(tokens) + 1, 4))
        kept = next((length for length in lengths if length is not None), len(tokens))
        assert ended["output_ids"] == whole["output_ids"][: kept - 1]
        assert ended["meta_info"]["completion_tokens"] == kept - 1
        stops.add(ended["meta_info"]["finish_reason"]["type"])
    assert "stop" in stops


def test_a_prompt_that_the_rule_ends_has_no_answer(server: Server) -> None:
    prompt = [EOS, *range(40, 166), EOS, *range(40, 174)]
    answer = server.generate(prompt, 40, dlm={"stop_rule": "upstream"})
    assert (answer["output_ids"], answer["meta_info"]["finish_reason"]["type"]) == ([], "stop")


REFUSED = [
    ({"mode": "autoregressive"}, {}, "custom_params.dlm.mode"),
    ({"mode": "self_speculation"}, {}, "custom_params.dlm.mode"),
    ({"algorithm": "prob_conf"}, {}, "custom_params.dlm.algorithm"),
    ({"threshold": 0.9}, {}, "custom_params.dlm.threshold"),
    ({"algorithm": "confidence", "threshold": 0.9}, {}, "custom_params.dlm.threshold"),
    ({"block_length": 8}, {}, "custom_params.dlm.block_length"),
    ({"stop_rule": "never"}, {}, "custom_params.dlm.stop_rule"),
    ({"stop_rule": "upstream"}, {"ignore_eos": True}, "ignore_eos"),
    ({"stop_rule": "upstream"}, {"stop_token_ids": [3]}, "stop_token_ids"),
    ({}, {"regex": "a+"}, "regex"),
]


@pytest.mark.parametrize(("options", "sampling", "field"), REFUSED)
def test_refusals(server: Server, options: dict[str, Any], sampling: dict[str, Any], field: str) -> None:
    body = generate_body([EOS], 8, dlm=options, **sampling)
    for stream in (False, True):
        response = server.post("/generate", {**body, "stream": stream})
        assert response.status_code == 400
        assert field in response.text


def test_refused_prompts_and_streams(server: Server) -> None:
    masked = server.post("/generate", generate_body([EOS, MASK], 8))
    assert (masked.status_code, "the mask" in masked.text) == (400, True)
    body = generate_body([EOS], 8, dlm={"stop_rule": "upstream"})
    streamed = server.post("/generate", {**body, "stream": True})
    assert (streamed.status_code, "stream" in streamed.text) == (400, True)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--page-size", "6"), "--page-size = 6: must be a multiple of the block size, 4"),
        (("--chunked-prefill-size", "50"), "--chunked-prefill-size = 50: must be a multiple of the page size, 4"),
        (("--device", "cuda", "--page-size", "12"), "--page-size = 12: SGLang's GPU kernels need a power of two"),
    ],
)
def test_pages_that_cannot_be(tmp_path: Path, flags: tuple[str, ...], says: str) -> None:
    with pytest.raises(RuntimeError) as ended, Server.launch(BLOCKS_OF_4, *flags, log=tmp_path / "log"):
        pass
    assert says in str(ended.value)


def test_history(server: Server) -> None:
    """The first block begins in the prompt."""
    answer = server.generate([EOS, 11, 200], 31, ignore_eos=True, dlm={"history": True})
    assert_history_tells(answer, MASK)
    assert answer["meta_info"]["dlm"]["history"][0]["start"] == -3
