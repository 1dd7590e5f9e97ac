"""What cannot be honoured gets HTTP 400 naming field, value, limit and remedy; nothing dies or hangs.

That the scheduler lives is part of the leak check after each test.
"""

from __future__ import annotations

from typing import Any

import pytest
from serving import Server, generate_body

PROMPT = [145, 20, 30]
CHAT = {"model": "default", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
COMPLETION = {"model": "default", "prompt": "hi", "max_tokens": 4}


def refused(server: Server, path: str, body: dict[str, Any]) -> str:
    """The message of the HTTP 400 that `body` is answered with, streaming or not."""
    messages: list[str] = []
    for stream in (False, True):
        response = server.post(path, {**body, "stream": stream})
        assert response.status_code == 400, response.text
        messages.append(response.text)
    return messages[0]


@pytest.mark.parametrize(
    ("dlm", "words"),
    [
        ({"mode": "fast"}, ["mode", "fast", "autoregressive"]),
        ({"blok_length": 8}, ["blok_length", "8", "block_length"]),
        ({"refinement_steps": 8}, ["refinement_steps", "steps"]),
        ({"block_length": 0}, ["block_length", "0", "1"]),
        ({"block_length": 33}, ["block_length", "33", "32", "routing.widths"]),
        ({"block_length": 2.5}, ["block_length", "2.5"]),
        ({"threshold": 1.5, "mode": "diffusion"}, ["threshold", "1.5"]),
        ({"mode": "self_speculation", "threshold": None}, ["threshold", "None", "schedule"]),
        ({"mode": "diffusion", "steps": 9}, ["steps", "9", "block length, 8"]),
        ({"mode": "diffusion", "steps": 0}, ["steps", "0", "1"]),
        ({"convergence_threshold": -1}, ["convergence_threshold", "-1", "0"]),
    ],
    ids=str,
)
def test_options(trained: Server, dlm: dict[str, Any], words: list[str]) -> None:
    custom = {"custom_params": {"dlm": dlm}}
    for path, body in (
        ("/generate", generate_body(PROMPT, 4, dlm=dlm)),
        ("/v1/chat/completions", {**CHAT, **custom}),
        ("/v1/completions", {**COMPLETION, **custom}),
    ):
        message = refused(trained, path, body)
        assert all(word in message for word in ["custom_params.dlm", *words]), message


@pytest.mark.parametrize(
    "asked",
    [
        {"regex": "[ab]+"},
        {"json_schema": "{}"},
        {"frequency_penalty": 0.5},
        {"presence_penalty": 0.5},
        {"repetition_penalty": 1.2},
        {"logit_bias": {"65": 1.0}},
        {"min_new_tokens": 2},
    ],
    ids=str,
)
def test_diffusion_that_cannot(trained: Server, asked: dict[str, Any]) -> None:
    message = refused(trained, "/generate", generate_body(PROMPT, 4, mode="diffusion", **asked))
    assert all(word in message for word in ["diffusion", *asked, "auto"]), message
    message = refused(trained, "/generate", generate_body(PROMPT, 4, dlm={"steps": 2}, **asked))
    assert all(word in message for word in ["custom_params.dlm.steps = 2", *asked]), message


@pytest.mark.parametrize(
    "asked",
    [
        {"response_format": {"type": "json_object"}},
        {"logit_bias": {"65": 1.0}},
        {"min_tokens": 2},
        {"presence_penalty": 1.0},
    ],
    ids=str,
)
def test_diffusion_that_cannot_in_chat(trained: Server, asked: dict[str, Any]) -> None:
    asked = {**asked, "custom_params": {"dlm": {"mode": "diffusion"}}}
    message = refused(trained, "/v1/chat/completions", {**CHAT, **asked})
    assert "does not support" in message


@pytest.mark.parametrize("n", [0, -1, 1 << 40])
def test_a_number_of_samples_that_is_none(trained: Server, n: int) -> None:
    assert "n = " in refused(trained, "/generate", generate_body(PROMPT, 4, n=n))
    assert "n = " in refused(trained, "/v1/chat/completions", {**CHAT, "n": n})
    assert "n = " in refused(trained, "/v1/completions", {**COMPLETION, "n": n})


@pytest.mark.parametrize("token_id", [320, 99999, -1])
def test_token_outside_the_vocabulary(trained: Server, token_id: int) -> None:
    message = refused(trained, "/generate", generate_body([5, token_id], 4))
    assert all(word in message for word in ["input_ids", str(token_id), "320"])
    batch = generate_body(PROMPT, 4)
    batch["input_ids"] = [PROMPT, [token_id]]
    assert str(token_id) in refused(trained, "/generate", batch)
    assert trained.post("/v1/completions", {**COMPLETION, "prompt": [5, token_id]}).status_code == 400


@pytest.mark.parametrize(
    ("field", "ids"),
    [("stop_token_ids", [5, 151645]), ("logit_bias", {"151645": 1.0})],
)
def test_ids_outside_the_vocabulary(trained: Server, field: str, ids: Any) -> None:
    """Beside `min_tokens`, which looks up all ids that end an answer."""
    for path, body in (
        ("/generate", generate_body(PROMPT, 4, min_new_tokens=2, **{field: ids})),
        ("/v1/chat/completions", {**CHAT, "min_tokens": 2, field: ids}),
        ("/v1/completions", {**COMPLETION, "min_tokens": 2, field: ids}),
    ):
        message = refused(trained, path, body)
        assert all(word in message for word in [field, "151645", "[0, 3"]), message


def test_logprobs_of_ids_outside_the_vocabulary(trained: Server) -> None:
    for ids in ([5, 320], [[320]]):
        asked = {"return_logprob": True, "token_ids_logprob": ids}
        message = refused(trained, "/generate", generate_body(PROMPT, 4, request=asked))
        assert "token_ids_logprob = 320: token ids must be in [0, 320)" in message


def test_a_pattern_that_does_not_compile(trained: Server) -> None:
    for path, body in (
        ("/generate", generate_body(PROMPT, 4, stop_regex=["a", "("])),
        ("/v1/chat/completions", {**CHAT, "stop_regex": "("}),
        ("/v1/completions", {**COMPLETION, "stop_regex": "("}),
    ):
        assert "stop_regex = '(': does not compile" in refused(trained, path, body)


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("/generate", {**generate_body(PROMPT, 4), "rid": ["a", "b"]}, "request = <as sent>: cannot be read"),
        ("/v1/completions", {**COMPLETION, "prompt": [5, 1 << 63]}, "request = <as sent>: cannot be read"),
        ("/v1/chat/completions", {**CHAT, "response_format": [-1]}, "AttributeError"),
        ("/v1/chat/completions", [], "AttributeError"),
        ("/generate", generate_body(PROMPT, 4, ebnf="root ::= root"), "Tokens not accepted"),
    ],
    ids=["ids-of-one-prompt", "prompt", "response_format", "no-mapping", "grammar"],
)
def test_what_sglang_stumbles_over(trained: Server, path: str, body: Any, word: str) -> None:
    """Which would be an HTTP 500 that blames the server."""
    response = trained.post(path, body)
    assert response.status_code == 400, response.text
    assert word in response.text


def test_what_sglang_refuses_is_refused_before_a_stream_begins(trained: Server) -> None:
    assert "top_p must be in (0, 1], got 7" in refused(trained, "/generate", generate_body(PROMPT, 4, top_p=7))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {**generate_body(PROMPT, 4), "input_ids": [[]]}),
        ("/generate", {**generate_body(PROMPT, 4), "input_ids": [PROMPT, []]}),
        ("/v1/completions", {**COMPLETION, "prompt": ["a", ""]}),
    ],
    ids=["ids", "among-others", "completion"],
)
def test_prompts_without_tokens(trained: Server, path: str, body: dict[str, Any]) -> None:
    assert "has no tokens" in refused(trained, path, body)


def test_a_text_without_tokens(trained: Server) -> None:
    """Which only the tokenizer tells: a stream has begun by then, and ends with the refusal."""
    for stream in (False, True):
        response = trained.post("/generate", {**generate_body("", 4), "stream": stream})
        assert (response.status_code == 400) is not stream
        assert "has no tokens" in response.text
    assert len(trained.generate(PROMPT, 4)["output_ids"]) == 4


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        pytest.param({"custom_params": {"x": [[1]]}}, "sampling_params", id="deep-list"),
        pytest.param({"custom_params": {"x": {"y": {"z": 1}}}}, "sampling_params", id="deep-mapping"),
        pytest.param({"custom_params": [1]}, "custom_params", id="custom_params"),
        pytest.param({"request": {"session_params": {"id": 5}}}, "session_params", id="session"),
        pytest.param({"request": {"return_logprob": True, "top_logprobs_num": 999}}, "top_logprobs_num", id="top"),
        pytest.param({"request": {"return_logprob": True, "logprob_start_len": -5}}, "logprob_start_len", id="start"),
        pytest.param({"request": {"return_sampling_mask": True}}, "return_sampling_mask", id="sampling-mask"),
        pytest.param({"request": {"return_hidden_states": True}}, "return_hidden_states", id="hidden-states"),
        pytest.param({"request": {"return_hidden_states": []}}, "return_hidden_states", id="hidden-states-of-none"),
        pytest.param({"request": {"positional_embed_overrides": 1}}, "positional_embed_overrides", id="embeddings"),
        pytest.param({"request": {"extra_key": ["a"]}}, "extra_key", id="cache-key"),
        pytest.param({"beam_width": 2}, "beam_width", id="beam"),
        pytest.param({"n": None}, "n = None", id="n"),
        pytest.param({"stop_token_ids": [1 << 63]}, "stop_token_ids", id="stop-id"),
        pytest.param({"sampling_seed": 1 << 64}, "i64", id="seed"),
    ],
)
def test_what_would_kill_the_scheduler(trained: Server, asked: dict[str, Any], word: str) -> None:
    response = trained.post("/generate", generate_body(PROMPT, 4, **asked))
    assert response.status_code == 400, response.text
    assert word in response.text
    assert len(trained.generate(PROMPT, 4)["output_ids"]) == 4


@pytest.mark.parametrize(
    "odd",
    [{"top_k": 3_000_000_000}, {"temperature": 1e39}, {"temperature": 1e-5}, {"stop_token_ids": [100]}],
    ids=str,
)
@pytest.mark.parametrize("mode", ["autoregressive", "diffusion", "self_speculation"])
def test_odd_values_are_honoured(trained: Server, mode: str, odd: dict[str, Any]) -> None:
    """They overflow or name the mask; the answer is whole and free of the mask."""
    output = trained.generate(PROMPT, 30, mode=mode, ignore_eos="stop_token_ids" not in odd, **odd)["output_ids"]
    assert 100 not in output
    assert len(output) == 30


def test_request_larger_than_the_context(with_adapter: Server) -> None:
    """One token more than the largest request, which `test_answers` serves."""
    body = generate_body([14] * (991 - 2 - 40), 41)
    response = with_adapter.post("/generate", body)
    assert response.status_code == 400
    assert all(word in response.text for word in ["max_new_tokens", "41", "40", "991"]), response.text
