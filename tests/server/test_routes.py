"""Every route that generates takes the options, in its body and as the model's name; nothing is ignored on any."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests
from routes import CHATS, GENERATES, asks, text_of
from serving import Server

OTHERWISE = {"mode": "diffusion", "threshold": None, "steps": 1}
"""Options with which the answers of the checkpoint are not those of other modes."""

NAME_A_MODEL = [path for path, body in GENERATES.items() if "model" in body]
REFUSED = {
    "/v1/embeddings",
    "/encode",
    "/v1/classify",
    "/classify",
    "/v1/rerank",
    "/v1/score",
    "/v1/decisions",
    "/v1/systemone",
    "/v1/audio/transcriptions",
}


def answer(server: Server, path: str, **fields: Any) -> str:
    """The text with which `path` answers."""
    response = server.post(path, {**GENERATES[path], **fields})
    assert response.status_code == 200, response.text
    return text_of(response.json())


def refusal(server: Server, path: str, body: Any) -> Any:
    """The body of an HTTP 400 or 404."""
    response = server.post(path, body)
    assert response.status_code in (400, 404), response.text
    content = response.json()
    if path.startswith("/api/"):
        assert set(content) == {"error"}
        return {"message": content["error"]}
    if path.startswith("/v1/messages"):
        assert content["type"] == "error"
    else:
        assert set(content) == {"error"}
        assert set(content["error"]) == {"message", "type", "param", "code"}
    return content["error"]


@pytest.mark.parametrize("path", GENERATES)
def test_takes_the_options(trained: Server, path: str) -> None:
    expected = answer(trained, "/v1/chat/completions" if path in CHATS else "/v1/completions", **asks(OTHERWISE))
    assert answer(trained, path, **asks(OTHERWISE)) == expected
    assert answer(trained, path, **asks({"mode": "autoregressive"})) != expected


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", GENERATES)
def test_a_wrong_mode(trained: Server, path: str, stream: bool) -> None:
    error = refusal(trained, path, {**GENERATES[path], **asks({"mode": "NONSENSE"}), "stream": stream})
    assert all(word in error["message"] for word in ("custom_params.dlm.mode", "NONSENSE", "self_speculation"))
    assert error.get("param", "custom_params.dlm.mode") == "custom_params.dlm.mode"


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"dlm": {"mode": "diffusion"}}, "custom_params.dlm,"),
        ({"mode": "diffusion"}, "custom_params.dlm.mode"),
        ({"threshold": 0.5}, "custom_params.dlm.threshold"),
        ({"extra_body": asks({})}, "send these fields without it"),
        ({"custom_params": {"dllm": {}}}, "custom_params.dlm,"),
        ({"custom_params": {"mode": "diffusion"}}, "custom_params.dlm.mode"),
        ({"custom_params": ["dlm"]}, "must be a mapping"),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", GENERATES)
def test_options_in_the_wrong_place(trained: Server, path: str, fields: dict[str, Any], place: str) -> None:
    assert place in refusal(trained, path, {**GENERATES[path], **fields})["message"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/generate", {"sampling_params": {"mode": "diffusion"}}),
        ("/generate", {"sampling_params": [{"mode": "diffusion"}]}),
        ("/api/chat", {"options": {"mode": "diffusion"}}),
        ("/vertex_generate", {"parameters": {"sampling_params": {"mode": "diffusion"}}}),
    ],
)
def test_options_among_parameters(trained: Server, path: str, fields: dict[str, Any]) -> None:
    message = refusal(trained, path, {**GENERATES[path], **fields})["message"]
    assert ".mode = 'diffusion'" in message
    assert "did you mean custom_params.dlm.mode" in message


def test_options_twice(trained: Server) -> None:
    parameters = {**GENERATES["/generate"]["sampling_params"], **asks({"mode": "diffusion"})}
    body = {"text": "abc", "sampling_params": parameters, **asks({"mode": "diffusion"})}
    assert "custom_params.dlm = {'mode': 'diffusion'}: is said twice" in refusal(trained, "/generate", body)["message"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"suffix": "x"}),
        ("/v1/completions", {"best_of": 2}),
        ("/v1/chat/completions", {"beam_width": 2}),
        ("/v1/responses", {"guided_json": {}}),
        ("/v1/responses", {"min_tokens": 2}),
        ("/v1/messages", {"frequency_penalty": 1.0}),
        ("/v1/responses", {"session_params": {"id": "a"}}),
        ("/api/chat", {"format": "json"}),
        ("/api/chat", {"think": True}),
        ("/api/generate", {"suffix": "x"}),
    ],
    ids=str,
)
def test_what_a_route_would_read_over(trained: Server, path: str, fields: dict[str, Any]) -> None:
    name = next(iter(fields))
    assert refusal(trained, path, {**GENERATES[path], **fields})["message"].startswith(f"{name} = ")


def names(server: Server) -> list[str]:
    """The models that the server lists."""
    return [model["id"] for model in requests.get(f"{server.url}/v1/models", timeout=30).json()["data"]]


def test_models_are_listed_with_their_modes(trained: Server) -> None:
    served, *listed = names(trained)
    assert listed == [f"{served}:{mode}" for mode in ("auto", "self_speculation", "diffusion", "autoregressive")]
    for name in listed:
        card = requests.get(f"{trained.url}/v1/models/{name}", timeout=30).json()
        assert (card["id"], card["root"]) == (name, served)
    assert requests.get(f"{trained.url}/v1/models/other", timeout=30).status_code == 404
    tags = requests.get(f"{trained.url}/api/tags", timeout=30).json()["models"]
    assert [model["name"] for model in tags] == [served, *listed]


@pytest.mark.parametrize("path", NAME_A_MODEL)
def test_a_mode_by_the_models_name(trained: Server, path: str) -> None:
    served = names(trained)[0]
    diffusion = answer(trained, path, **asks({"mode": "diffusion"}))
    for base in (served, "default"):
        assert answer(trained, path, model=f"{base}:diffusion") == diffusion
        error = refusal(trained, path, {**GENERATES[path], "model": f"{base}:fast"})
        assert all(word in error["message"] for word in ("there is no such model", f"{served}:diffusion"))
    fields = {"model": f"{served}:diffusion", **asks({"mode": "auto"})}
    assert "is diffusion by the model's name" in refusal(trained, path, {**GENERATES[path], **fields})["message"]
    assert answer(trained, path, model=f"{served}:diffusion", **asks({"threshold": None, "steps": 1})) == answer(
        trained, path, **asks(OTHERWISE)
    )


@pytest.mark.parametrize("path", sorted(REFUSED))
def test_routes_of_other_models(trained: Server, path: str) -> None:
    assert refusal(trained, path, {"input": "hi", "model": "default"})["message"].startswith(f"path = '{path}': a diff")


@pytest.mark.parametrize(
    ("fields", "written"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"min_tokens": 2}, "min_tokens"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
                "tool_choice": "required",
            },
            "tools",
        ),
    ],
    ids=str,
)
def test_refusals_name_what_was_written(trained: Server, fields: dict[str, Any], written: str) -> None:
    body = {**CHATS["/v1/chat/completions"], **fields, **asks({"mode": "diffusion"})}
    assert f"does not support {written};" in refusal(trained, "/v1/chat/completions", body)["message"]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 999}, "top_logprobs"),
        ("/v1/chat/completions", {"temperature": "hot"}, "temperature"),
        ("/v1/completions", {"n": 0}, "n"),
        ("/generate", {"stream": "maybe"}, "stream"),
        ("/v1/responses", {"input": None}, "input"),
    ],
)
def test_errors_have_one_shape(trained: Server, path: str, fields: dict[str, Any], param: str) -> None:
    error = refusal(trained, path, {**GENERATES[path], **fields})
    assert error["type"] == "invalid_request_error"
    assert error["code"] == 400
    assert param in str(error["param"])


def test_a_stream_of_ollamas_is_whole(trained: Server) -> None:
    """SGLang leaves out what comes with the end."""
    for path in ("/api/chat", "/api/generate"):
        response = trained.post(path, {**GENERATES[path], "stream": True})
        lines = [json.loads(line) for line in response.text.splitlines()]
        assert "".join(map(text_of, lines)) == answer(trained, path)
        assert [line["done"] for line in lines] == [*[False] * (len(lines) - 1), True]


def test_every_route_that_generates_is_known(trained: Server) -> None:
    """A route that SGLang adds must be told what to do with our options."""
    schema = requests.get(f"{trained.url}/openapi.json", timeout=30).json()
    taking = {path for path, methods in schema["paths"].items() if "requestBody" in methods.get("post", {})}
    prompts = {path for path in taking if path.startswith(("/v1/", "/api/"))} - OTHERS
    assert prompts - REFUSED - set(GENERATES) == set()


OTHERS = {"/v1/tokenize", "/v1/detokenize", "/v1/messages/count_tokens", "/api/show"}
"""Routes that take text and do not generate."""
