"""Talk to a running server through its public HTTP API."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict

from dlm_serve.errors import ConfigError, ServerError

API_KEY_VARIABLE = "DLM_SERVE_API_KEY"
"""Names the server's API key in the environment, for commands that are not told it."""

DEFAULT_URL = "http://127.0.0.1:30000"

MODES = ("autoregressive", "diffusion", "self_speculation")
"""The decode modes of a request besides `auto`. Spelled out here because `dlm_serve.decoding` imports torch."""

_TIMEOUT = httpx.Timeout(600.0, connect=5.0)
"""Seconds. An answer may have to wait for many others."""

_NO_PLUGIN = (
    "the server does not say how it decodes: it runs without dlm-serve, or serves another model. Start it with a model "
    "of one of the families in README.md, where dlm-serve is installed."
)

Message = dict[str, str]
"""`role` and `content`, as in the OpenAI API."""

Options = Mapping[str, object]
"""`custom_params.dlm` of a request."""


class Statistics(BaseModel):
    """The cost of decoding an answer: `meta_info.dlm`."""

    model_config = ConfigDict(frozen=True)

    mode: str
    nfe: int
    """Forward passes after the prefill."""
    tokens_per_forward: float | None
    acceptance_length: float | None
    block_length: int


@dataclass(frozen=True)
class Answer:
    """An answer, or the part of it that has arrived so far."""

    text: str
    token_ids: tuple[int, ...]
    statistics: Statistics
    seconds: float
    """Since the request was sent."""
    is_cut: bool
    """Whether it ended at the token limit."""


class Client:
    """A client of the server at `url`, safe to share between threads. All methods raise ServerError."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """Talk to the server at `url`, whose API key is `api_key` or in the environment, if it has one."""
        self.url = url.rstrip("/")
        key = api_key or os.environ.get(API_KEY_VARIABLE)
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        """Of every request."""
        # As many connections as requests at once.
        self._http = httpx.Client(timeout=_TIMEOUT, headers=self.headers, limits=httpx.Limits(max_connections=None))

    def about(self) -> dict[str, Any]:
        """Return what the server reports about itself: its settings, and SGLang's `version`."""
        with self._errors():
            response = self._http.get(f"{self.url}/server_info")
            return _content_of(response)

    def modes(self, asked: Sequence[str] | None = None) -> tuple[str, ...]:
        """Return the modes that the server's model offers, or those of them that are `asked` for.

        Raises ConfigError if one of these is missing.
        """
        with self._errors():
            listed = _content_of(self._http.get(f"{self.url}/v1/models"))["data"]
        names = {card["id"].rpartition(":")[2] for card in listed}
        offered = tuple(mode for mode in MODES if mode in names)
        if not offered:
            raise ServerError(_NO_PLUGIN)
        missing = [mode for mode in asked or () if mode not in offered]
        if missing:
            raise ConfigError("--modes", missing[0], f"this model offers {', '.join(offered)}", "leave it out")
        return offered if asked is None else tuple(dict.fromkeys(asked))

    def threshold_algorithm(self) -> str | None:
        """Return the `algorithm` of diffusion that a threshold needs, None where the family's default knows one."""
        with self._errors():
            status = _content_of(self._http.get(f"{self.url}/dlm/status"))
        found: str | None = status["threshold_algorithm"]
        return found

    def tokenize(self, messages: Sequence[Message], **template_options: object) -> list[int]:
        """Return the token ids of a conversation, up to where the assistant's next message begins."""
        body = {"messages": list(messages), "chat_template_kwargs": template_options}
        ids: list[int] = self._post("/tokenize", body)["tokens"]
        return ids

    def generate(self, prompt_ids: Sequence[int], options: Options, max_new_tokens: int) -> Answer:
        """Return the whole answer to a prompt."""
        start = time.perf_counter()
        return _answer(self._post("/generate", _generate_body(prompt_ids, options, max_new_tokens)), start)

    def stream(
        self, prompt_ids: Sequence[int], options: Options, max_new_tokens: int | None, *, skip_special: bool = True
    ) -> Generator[Answer]:
        """Yield the answer as it grows; the last one is complete. Closing the generator ends the request.

        `max_new_tokens` None allows as many as fit.
        """
        body = _generate_body(prompt_ids, options, max_new_tokens) | {"stream": True}
        body["sampling_params"]["skip_special_tokens"] = skip_special
        start = time.perf_counter()
        with self._errors(), self._http.stream("POST", f"{self.url}/generate", json=body) as response:
            if response.status_code != httpx.codes.OK:
                response.read()
                _content_of(response)
            for line in response.iter_lines():
                data = line.removeprefix("data: ")
                if data != line and data != "[DONE]":
                    yield _answer(json.loads(data), start)

    def log_probabilities(self, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> list[float]:
        """Return the log-probability of each token of an answer given those before it, autoregressively, in nats."""
        body = _generate_body([*prompt_ids, *answer_ids], {"mode": "autoregressive"}, 0)
        # The first entry is of the prompt's last token, which nothing is said about.
        body |= {"return_logprob": True, "logprob_start_len": len(prompt_ids) - 1}
        entries = self._post("/generate", body)["meta_info"]["input_token_logprobs"][1:]
        if [entry[1] for entry in entries] != list(answer_ids):
            raise ServerError(f"{self.url} gave log-probabilities of other tokens than were sent.")
        return [float(entry[0]) for entry in entries]

    def _post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        with self._errors():
            return _content_of(self._http.post(f"{self.url}{path}", json=body))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError:
            raise ServerError(
                f"no server answers at {self.url}. Start one in another terminal: `make serve` for the bundled model, "
                "or `python -m sglang.launch_server --model-path MODEL`; or say where it is with --url."
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise ServerError(f"{self.url}: {error or type(error).__name__}") from None


def printable(text: str) -> str:
    """Return `text` with each control character, which a terminal would obey, replaced by one visible character."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _generate_body(prompt_ids: Sequence[int], options: Options, max_new_tokens: int | None) -> dict[str, Any]:
    sampling = {"temperature": 0, "max_new_tokens": max_new_tokens, "custom_params": {"dlm": dict(options)}}
    return {"input_ids": list(prompt_ids), "sampling_params": sampling}


def _answer(content: Mapping[str, Any], start: float) -> Answer:
    """Return the answer in a response of `/generate` or in a chunk of its stream. Raises ServerError."""
    if "error" in content:
        raise ServerError(_message(content))
    about = content["meta_info"]
    if "dlm" not in about:
        raise ServerError(_NO_PLUGIN)
    return Answer(
        text=content["text"],
        token_ids=tuple(content["output_ids"]),
        statistics=Statistics.model_validate(about["dlm"]),
        seconds=time.perf_counter() - start,
        is_cut=(about["finish_reason"] or {}).get("type") == "length",
    )


def _content_of(response: httpx.Response) -> dict[str, Any]:
    """Return the JSON object in a response. Raises ServerError with the server's own message if it is an error."""
    content: dict[str, Any] = (
        response.json() if response.headers.get("content-type", "").startswith("application/json") else {}
    )
    if response.status_code == httpx.codes.UNAUTHORIZED:
        raise ServerError(
            f"HTTP 401 from {response.url}: it asks for an API key; give one with --api-key or {API_KEY_VARIABLE}."
        )
    if response.status_code != httpx.codes.OK:
        raise ServerError(f"HTTP {response.status_code} from {response.url}: {_message(content) or response.text}")
    return content


def _message(content: Mapping[str, Any]) -> str:
    """Return the message of an error, which SGLang nests on some routes and not on others."""
    error = content.get("error", content)
    return str(error.get("message", error) if isinstance(error, dict) else error)
