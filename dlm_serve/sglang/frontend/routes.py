"""List SGLang's routes by what they do with a request: take our options, or be refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto


class ErrorStyle(Enum):
    """How the clients of a route expect an error."""

    OPENAI = auto()
    ANTHROPIC = auto()
    OLLAMA = auto()


_UNREAD: Mapping[str, tuple[object, ...]] = {
    "beam_width": (None, 1),
    "use_beam_search": (None, False),
    "session_params": (None,),
    "thinking_budget": (None,),
}
_ELSEWHERE: Mapping[str, tuple[object, ...]] = {
    **_UNREAD,
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "audio": (None,),
    "web_search_options": (None,),
    "structured_outputs": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "bad_words": (None, []),
    "min_new_tokens": (None, 0),
    "max_new_tokens": (None,),
}
"""On OpenAI's routes, with fields of its old interface, of other servers and of `/generate`."""

_NOT_OF_MESSAGES: Mapping[str, tuple[object, ...]] = {
    "custom_logit_processor": (None, ""),
    "ebnf": (None, ""),
    "ignore_eos": (None, False),
    "json_schema": (None, ""),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "min_tokens": (None, 0),
    "n": (None, 1),
    "regex": (None, ""),
    "response_format": (None,),
    "seed": (None,),
    "stop_regex": (None, "", []),
    "stop_token_ids": (None, []),
    "frequency_penalty": (None, 0.0),
    "min_p": (None, 0.0),
    "presence_penalty": (None, 0.0),
    "repetition_penalty": (None, 1.0),
    "stop": (None, "", []),
    "top_logprobs": (None, 0),
}
"""Fields of chats that `/v1/messages` does not have."""

_OF_RESPONSES = ("frequency_penalty", "min_p", "presence_penalty", "repetition_penalty", "stop", "top_logprobs")
_NOT_OF_RESPONSES = {name: nothing for name, nothing in _NOT_OF_MESSAGES.items() if name not in _OF_RESPONSES}

_OLLAMA: Mapping[str, tuple[object, ...]] = {
    **_UNREAD,
    "format": (None, ""),
    "think": (None, False),
    "tools": (None, []),
    "images": (None, []),
}


@dataclass(frozen=True)
class Route:
    """A route that generates."""

    ignored: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Fields that SGLang reads over, which change the answer where they are honoured, with the values that ask for
    nothing."""
    only_with: Mapping[str, str] = field(default_factory=dict)
    """Fields that SGLang reads only where another one is given."""
    parameters: str | None = None
    """The field of its body in which SGLang's sampling parameters stand, or Ollama's options."""
    begins_before_it_reads: bool = False
    """Whether SGLang begins to stream before it has read the whole request."""
    stumbles_without_model: bool = False
    """Whether SGLang answers a body without `model` with an error, although it may be left out."""


_CHAT = Route(_ELSEWHERE, only_with={"top_logprobs": "logprobs"})

GENERATES: Mapping[str, Route] = {
    "/generate": Route(parameters="sampling_params"),
    "/v1/completions": Route({**_ELSEWHERE, "suffix": (None, ""), "best_of": (None, 1)}),
    "/v1/chat/completions": _CHAT,
    "/invocations": _CHAT,
    "/v1/responses": Route(
        {**_ELSEWHERE, **_NOT_OF_RESPONSES}, begins_before_it_reads=True, stumbles_without_model=True
    ),
    "/v1/messages": Route({**_ELSEWHERE, **_NOT_OF_MESSAGES}, begins_before_it_reads=True),
    os.environ.get("SGLANG_OLLAMA_CHAT_ROUTE", "/api/chat"): Route(_OLLAMA, parameters="options"),
    os.environ.get("SGLANG_OLLAMA_GENERATE_ROUTE", "/api/generate"): Route(
        {
            **_OLLAMA,
            "suffix": (None, ""),
            "template": (None, ""),
            "context": (None, []),
            "raw": (None, False),
        },
        parameters="options",
    ),
    os.environ.get("AIP_PREDICT_ROUTE", "/vertex_generate"): Route(parameters="parameters"),
}
"""By path. All take `custom_params` at the top level of the body."""

REFUSED: Mapping[str, str] = {
    "/v1/embeddings": "gives no embeddings",
    "/encode": "gives no embeddings",
    "/v1/classify": "has no classes",
    "/classify": "has no classes",
    "/v1/rerank": "does not rank documents",
    "/v1/score": "does not score labels",
    "/v1/decisions": "does not score labels",
    "/v1/systemone": "does not score labels",
    "/v1/audio/transcriptions": "hears nothing",
}
"""Routes for other models, with what a diffusion language model does not do."""

WITH_TEXT = ("/v1/", "/api/", "/tokenize", "/detokenize", "/invocations")
"""How the paths of routes begin that need a tokenizer."""

_OLLAMA_PATHS = tuple(path for path, route in GENERATES.items() if route.parameters == "options")


def style_of(path: str) -> ErrorStyle:
    """Return how errors of a route are written."""
    if path.startswith("/v1/messages"):
        return ErrorStyle.ANTHROPIC
    return ErrorStyle.OLLAMA if path in _OLLAMA_PATHS or path.startswith("/api/") else ErrorStyle.OPENAI
