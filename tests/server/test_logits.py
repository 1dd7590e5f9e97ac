"""What requests ask of their logits: the tokens of autoregression, in every mode that honours it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from golden import NEMOTRON_LABS_DIFFUSION, THINKING, TRAINED, WITH_ADAPTER
from serving import Server, generate_body

PROMPTS = ([145, 20, 30], [33, 44, 55, 66, 77])
LENGTH = 40

ONE_FORWARD: dict[str, Any] = {"mode": "self_speculation", "speculation": "one_forward", "budget": 48}

FAVOURED = {"logit_bias": {"65": 9.0, "20": 8.0, "70": 8.5}, "ignore_eos": True}
"""Answers that repeat themselves, so that penalties have something to count."""

RULES: dict[str, dict[str, Any]] = {
    "frequency_penalty": {"frequency_penalty": 1.6, **FAVOURED},
    "presence_penalty": {"presence_penalty": 2.0, **FAVOURED},
    "repetition_penalty": {"repetition_penalty": 1.6, **FAVOURED},
    "logit_bias": FAVOURED,
    "min_new_tokens": {"min_new_tokens": 35},
    "all, drawn": {
        "frequency_penalty": 0.7,
        "presence_penalty": 0.4,
        "repetition_penalty": 1.2,
        "logit_bias": {"30": 1.5},
        "min_new_tokens": 30,
        "temperature": 0.9,
        "top_p": 0.9,
        "sampling_seed": 7,
    },
}
GRAMMARS: dict[str, dict[str, Any]] = {
    "regex": {"regex": "[a-z]{3,9} [0-9]+( [a-z]+)*"},
    "json_schema": {"json_schema": json.dumps({"type": "array", "items": {"enum": ["a", "bc", 1]}, "minItems": 3})},
    "ebnf": {"ebnf": 'root ::= ("x" | "yz")+ "."'},
    "drawn, with rules": {"regex": "[a-z ]{20,40}", "temperature": 1.0, "sampling_seed": 3, "frequency_penalty": 1.0},
}
CASES = RULES | GRAMMARS


def bodies(mode: str, **dlm: Any) -> list[dict[str, Any]]:
    """All cases with all prompts."""
    asked = [(case, prompt) for case in CASES.values() for prompt in PROMPTS]
    return [generate_body(prompt, LENGTH, mode=mode, dlm=dlm, **case) for case, prompt in asked]


@pytest.fixture(scope="module")
def expected(trained: Server) -> list[list[int]]:
    """What each of `bodies` comes to autoregressively, some of them also alone."""
    asked = bodies("autoregressive")
    outputs = [answer["output_ids"] for answer in trained.generate_all(asked, len(asked))]
    alone = trained.generate_all(asked[::3], 1)
    assert [answer["output_ids"] for answer in alone] == outputs[::3]
    return outputs


WAYS: dict[str, dict[str, Any]] = {
    "autoregressive": {"mode": "autoregressive"},
    "in turn": {"mode": "self_speculation"},
    "in one forward": ONE_FORWARD,
    "auto": {"mode": "auto"},
}


def test_answers_are_the_autoregressive_ones(trained: Server, expected: list[list[int]]) -> None:
    """In all ways at once, beside requests that ask nothing of their logits, whose answers do not change either."""
    plain = [generate_body(prompt, LENGTH, mode=mode) for prompt in PROMPTS for mode in ("auto", "diffusion")]
    alone = [trained.generate_all([body], 1)[0]["output_ids"] for body in plain]
    together = trained.generate_all([*plain, *(body for dlm in WAYS.values() for body in bodies(**dlm))], 32)
    assert [answer["output_ids"] for answer in together[: len(plain)]] == alone
    for number, way in enumerate(WAYS):
        answers = together[len(plain) + number * len(expected) :][: len(expected)]
        assert [answer["output_ids"] for answer in answers] == expected, way
        if way.startswith("in "):
            for answer, asked in zip(answers[::2], CASES, strict=True):
                if asked in RULES:  # what grammars force on a model that knows none is not what it drafts
                    statistics = answer["meta_info"]["dlm"]
                    assert statistics["nfe"] < 0.8 * len(answer["output_ids"]), (way, asked, statistics)


def test_retracted_and_resumed(crowded: Server, expected: list[list[int]]) -> None:
    """What was counted and where grammars stood is not forgotten."""
    for mode in ("autoregressive", "self_speculation"):
        answers = crowded.generate_all(bodies(mode), 12)
        assert [answer["output_ids"] for answer in answers] == expected


def test_logprobs_of_resumed_requests(crowded: Server) -> None:
    """Each is of the token that was answered, whatever an EXTEND call gave in between."""
    want = {"return_logprob": True, "top_logprobs_num": 1, "token_ids_logprob": [5]}
    asked = [
        generate_body([*PROMPTS[0], i], LENGTH, mode=mode, ignore_eos=True, request=want)
        for i in range(8)
        for mode in ("autoregressive", "self_speculation", "diffusion")
    ]
    for answer in crowded.generate_all(asked, len(asked)):
        meta = answer["meta_info"]
        assert [entry[1] for entry in meta["output_token_logprobs"]] == answer["output_ids"]
        assert [len(entry) for entry in meta["output_top_logprobs"]] == [1] * LENGTH
        if meta["dlm"]["mode"] != "diffusion":
            assert [entry[0][1] for entry in meta["output_top_logprobs"]] == answer["output_ids"]


def test_logprobs_of_prompts_beside_retracted_requests(trained: Server, crowded: Server) -> None:
    """Those that each has alone, whoever left its prefill."""
    rng = random.Random(3)
    asked = [
        generate_body(
            [rng.randrange(5, 250) for _ in range(rng.choice([1, 5, 17, 48]))],
            rng.choice([1, 5, 16]),
            mode="autoregressive",
            ignore_eos=True,
            request={"return_logprob": True, "logprob_start_len": 0},
        )
        for _ in range(60)
    ]
    alone, beside = (
        [[entry[0] for entry in answer["meta_info"]["input_token_logprobs"]] for answer in answers]
        for answers in (trained.generate_all(asked, 1), crowded.generate_all(asked, 16))
    )
    for found, expected in zip(beside, alone, strict=True):
        assert found[0] is expected[0] is None
        assert found[1:] == pytest.approx(expected[1:], abs=2e-4)


@pytest.mark.parametrize("way", WAYS)
def test_a_grammar_that_ends_with_the_first_token_ends_the_answer(trained: Server, way: str) -> None:
    """Also one that goes on behind its end otherwise, and whose first token comes from the prefill."""
    grammar = {"ebnf": 'root ::= ""'}
    answer = trained.generate(PROMPTS[0], 5, ignore_eos=True, dlm=WAYS[way], **grammar)
    assert answer["text"] == ""
    assert answer["meta_info"]["completion_tokens"] == 1
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": answer["output_ids"][0]}


@pytest.mark.parametrize(("name", "model"), [("trained", TRAINED), ("with_adapter", WITH_ADAPTER)])
def test_thinking_budgets(request: pytest.FixtureRequest, name: str, model: Path) -> None:
    """The reference's, whose autoregressive answers are cut off from thinking behind ten tokens."""
    server: Server = request.getfixturevalue(name)
    reference = THINKING.cases(model, "ar")
    assert len(reference) == 3
    asked = [
        generate_body(
            case["prompt_ids"],
            case["params"]["max_new_tokens"],
            dlm={**dlm, "max_thinking_tokens": case["params"]["max_thinking_tokens"]},
        )
        for dlm in WAYS.values()
        for case in reference
    ]
    answers = server.generate_all(asked, len(asked))
    assert [answer["output_ids"] for answer in answers] == [case["output_ids"] for case in reference] * len(WAYS)


@pytest.mark.parametrize(("name", "model"), [("trained", TRAINED), ("with_adapter", WITH_ADAPTER)])
def test_thinking_budgets_of_diffusion(request: pytest.FixtureRequest, name: str, model: Path) -> None:
    """The reference's tokens and forward passes, which has the end stand in its block from the beginning."""
    cases = THINKING.cases(model, "diffusion")
    assert len(cases) == 3
    answers = THINKING.ask(request.getfixturevalue(name), cases)
    assert THINKING.differences(cases, answers) == []


def test_a_budget_ends_thinking_wherever_it_falls(trained: Server) -> None:
    """At the first token of a block, which the commit before it predicts, as inside of one."""
    options = [{"max_thinking_tokens": budget, "end_think_token_id": 65} for budget in range(10)]
    asked = [generate_body(PROMPTS[0], 24, mode="diffusion", dlm=dlm, ignore_eos=True) for dlm in options]
    answers = trained.generate_all(asked, len(asked))
    assert [answer["output_ids"].index(65) for answer in answers] == list(range(10))


def test_rules_do_what_they_say(trained: Server, expected: list[list[int]]) -> None:
    short = next(
        c for c in NEMOTRON_LABS_DIFFUSION.cases(TRAINED, "ar") if c["finish"] == "eos" and len(c["output_ids"]) < 40
    )
    longer = trained.generate(short["prompt_ids"], 50, min_new_tokens=len(short["output_ids"]) + 5)["output_ids"]
    assert longer[: len(short["output_ids"]) - 1] == short["output_ids"][:-1]
    assert len(longer) > len(short["output_ids"])
    assert set(trained.generate(PROMPTS[0], 6, logit_bias={"65": 100.0})["output_ids"]) == {65}
    penalised, free = (
        dict(zip(CASES, expected[::2], strict=True))[name] for name in ("frequency_penalty", "logit_bias")
    )
    assert len(set(penalised)) > len(set(free)) < LENGTH // 2
    letters = trained.generate(PROMPTS[0], 12, regex="[ab]{6}")["text"]
    assert len(letters) == 6
    assert set(letters) <= {"a", "b"}


@pytest.mark.parametrize("asked", [{}, RULES["all, drawn"], GRAMMARS["regex"]], ids=["plain", "rules", "grammar"])
def test_logprobs(trained: Server, asked: dict[str, Any]) -> None:
    """Of the chosen, the likeliest and the listed tokens, as autoregressively; also in a batch of mixed modes."""
    want = {"return_logprob": True, "logprob_start_len": 1, "top_logprobs_num": 2, "token_ids_logprob": [5, 65]}
    ways: list[dict[str, Any]] = [
        {"mode": "autoregressive"},
        {"mode": "self_speculation"},
        ONE_FORWARD,
        {"mode": "diffusion"},
    ]
    if asked:
        ways.pop()  # diffusion refuses them
    bodies = [generate_body(PROMPTS[0], LENGTH, dlm=way, request=want, **asked) for way in ways]
    expected, *alone = (trained.generate_all([body], 1)[0] for body in bodies)
    others = [generate_body(PROMPTS[1], 40, dlm=way, ignore_eos=True) for way in ways * 2]
    together = trained.generate_all([*others, *bodies], 12)[len(others) :]
    for answer in (*alone, *together):
        if answer["output_ids"] != expected["output_ids"]:
            assert answer["meta_info"]["dlm"]["mode"] == "diffusion"  # whose tokens are its own
            continue
        for field in (
            "input_token_logprobs",
            "output_token_logprobs",
            "output_top_logprobs",
            "output_token_ids_logprobs",
        ):
            ours, theirs = flat(answer["meta_info"][field]), flat(expected["meta_info"][field])
            assert ours == pytest.approx(theirs, abs=2e-4), field
    assert len(expected["meta_info"]["output_token_logprobs"]) == len(expected["output_ids"])


def flat(entries: Any) -> list[float]:
    """All numbers in a list of lists; texts and what is missing are left out."""
    if isinstance(entries, list):
        return [number for entry in entries for number in flat(entry)]
    return [] if entries is None or isinstance(entries, str) else [float(entries)]


def test_a_budget_beyond_all_measure(trained: Server) -> None:
    """Refused, and the server lives."""
    refused = trained.post("/generate", generate_body(PROMPTS[0], 4, dlm={"max_thinking_tokens": 1 << 63}))
    assert refused.status_code == 400
    assert "max_thinking_tokens" in refused.text


def test_rules_beyond_all_measure(trained: Server) -> None:
    """A bias beyond float32 rules a token in or out."""
    assert set(trained.generate(PROMPTS[0], 4, logit_bias={"65": 1e300})["output_ids"]) == {65}
    banned = trained.generate(PROMPTS[0], 1)["output_ids"][0]
    assert banned not in trained.generate(PROMPTS[0], 8, logit_bias={str(banned): -1e300})["output_ids"]


def test_diffusion_scores_its_own_tokens(trained: Server) -> None:
    """By the forward that commits them: as a prompt, the same tokens have the same log-probabilities."""
    want = {"return_logprob": True}
    answer = trained.generate(PROMPTS[0], 24, mode="diffusion", ignore_eos=True, request=want)
    tokens = answer["output_ids"]
    as_prompt = generate_body([*PROMPTS[0], *tokens], 1, request={**want, "logprob_start_len": len(PROMPTS[0]) - 1})
    scored = trained.post("/generate", as_prompt).json()["meta_info"]["input_token_logprobs"]
    ours = [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]
    assert ours == pytest.approx([entry[0] for entry in scored[1:]], abs=2e-4)


CONSTRAINED_CHATS: dict[str, dict[str, Any]] = {
    "json_object": {"response_format": {"type": "json_object"}},
    "json_schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "list", "schema": {"type": "array", "items": {"enum": ["a", "bc"]}, "minItems": 2}},
        }
    },
    "structural_tag": {
        "response_format": {
            "type": "structural_tag",
            "structures": [{"begin": "<f>", "schema": {"enum": ["x", "yz"]}, "end": "</f>"}],
            "triggers": ["<f>"],
        }
    },
    "regex": {"regex": "[a-f]{8,20}"},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "min_tokens and a stop inside a block": {"min_tokens": 20, "stop": ["e", "12"], "logprobs": True},
}


@pytest.mark.parametrize("name", CONSTRAINED_CHATS)
def test_chats(trained: Server, name: str) -> None:
    """Whole and streamed, as autoregressively."""
    chat = {"model": "default", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 40, "temperature": 0}
    found = {}
    for mode in ("autoregressive", "self_speculation"):
        body = {**chat, **CONSTRAINED_CHATS[name], "custom_params": {"dlm": {"mode": mode}}}
        whole = trained.post("/v1/chat/completions", body).json()["choices"][0]
        pieces = [
            json.loads(line.removeprefix("data: "))["choices"][0]
            for line in trained.post("/v1/chat/completions", {**body, "stream": True}).text.splitlines()
            if line.startswith("data: {")
        ]
        text = "".join(piece["delta"].get("content") or "" for piece in pieces)
        assert text == whole["message"]["content"]
        tokens = (whole.get("logprobs") or {}).get("content") or []
        streamed = [entry for piece in pieces for entry in (piece.get("logprobs") or {}).get("content") or []]
        assert [entry["token"] for entry in streamed] == [entry["token"] for entry in tokens[: len(streamed)]]
        scores = [entry["logprob"] for entry in tokens[: len(streamed)]]
        assert [entry["logprob"] for entry in streamed] == pytest.approx(scores, abs=2e-4)
        behind = "".join(entry["token"] for entry in tokens[len(streamed) :])
        assert behind in ("", "<|im_end|>", *CONSTRAINED_CHATS[name].get("stop", ()))  # which add no text
        found[mode] = text, [round(entry["logprob"], 3) for entry in tokens], whole["finish_reason"]
    assert found["self_speculation"][0] == found["autoregressive"][0]
    assert found["self_speculation"][1] == pytest.approx(found["autoregressive"][1], abs=2e-3)
    assert found["self_speculation"][2] == found["autoregressive"][2]
