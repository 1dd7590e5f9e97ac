"""Random requests over all fields of a server's routes: valid ones, and ones that are wrong in every way.

The fields come from the server's own OpenAPI schema, so that none is forgotten. A request is a function of a seed and
its number.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ROUTES = ("/generate", "/v1/chat/completions", "/v1/completions", "/v1/messages", "/api/chat", "/api/generate")

JUNK_SHARE = 0.2
"""Of values that are of no use for their field."""
ABORT_SHARE = 0.15
"""Of requests whose client leaves before the answer."""
ABORT_ALL_SHARE = 0.01
"""Of calls that end all requests."""
NO_BODY_SHARE = 0.01
"""Of bodies that are no mappings."""
MAX_DEPTH = 5

UNKNOWN = ("blok_length", "refinement_steps", "dlm", "", "é" * 9, "model_config")
"""Names that no option has."""

INTEGERS = (0, 1, 2, 3, 7, 40, 255, -1, -2, 1 << 31, 1 << 62, 1 << 63, 1 << 64, -(1 << 63) - 1)
NUMBERS = (0, 0.0, 0.3, 0.9, 1, 1.0, 1.5, 2, -0.5, 1e-7, 1e-30, 1e30, 1e308, float("nan"), float("inf"), -float("inf"))
STRINGS = ("", "a", "hi", "3", " ", "\n", "\0", "ü€𝄞", "\ud800", "x" * 3000, "None", "auto", "default", "{}", "(")
JUNK: tuple[Any, ...] = (
    None,
    True,
    False,
    *INTEGERS,
    *NUMBERS,
    *STRINGS,
    [],
    {},
    [[]],
    [None],
    [-1],
    {"": None},
    {"a": {"b": [1, {}]}},
)

IDS: tuple[Any, ...] = (
    [5],
    [5, 6, 7],
    [0, 319],
    [100],
    [0] * 300,
    [320],
    [5, 151645],
    [-1],
    [1 << 63],
    [[5], [6, 7]],
    [[5], []],
)
PATTERNS = (
    *("[ab]+", "a{1,50}", r"\d{3}", "(a|b)*c$", r"\p{L}+", "(?=a)b", "(?P<x>a)(?P=x)", "a{2000}", ".*", "^$"),
    *("(", "[", "a**", "a{99999999999999999999}", "(" * 200, "\\", "(?i", "a|*"),
)
SCHEMAS = (
    *("{}", '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}', '{"enum": ["a", 1]}'),
    *('{"type": "array", "items": {"$ref": "#"}}', '{"type": "string", "pattern": "[a-z]+"}', "true", "$$ANY$$"),
    *("{", "[]", "null", '"a"', '{"type": "bogus"}', '{"$ref": "#/x"}', '{"enum": []}', '{"a": ' * 300, '{"allOf": 3}'),
)
GRAMMARS = (
    *('root ::= "a" | "b" root', "root ::= [a-z]+", 'root ::= ("a"){2,5}', 'root ::= x\nx ::= "y"', 'root ::= ""'),
    *(
        "x",
        "root ::= root",
        "root ::= y",
        'root ::= "a" |',
        "::=",
        'root ::= "',
        "root ::= [z-a]",
        "root ::= " + "(" * 99,
    ),
)
CHAT = [{"role": "user", "content": "hi"}]

POOLS: dict[str, tuple[Any, ...]] = {
    "prompt": ("hi", "a b c", [5, 6, 7], [[5], [6, 7]], ["a", "b"], "", [], ["a", ""], "x " * 400),
    "text": ("hi", ["a", "b"], "", [], "x " * 400),
    "messages": (CHAT, [], [*CHAT, {"role": "assistant", "content": "a"}], [{"role": "system", "content": "b"}, *CHAT]),
    **dict.fromkeys(
        ("max_tokens", "max_new_tokens", "max_completion_tokens"), (0, 1, 2, 9, 17, 40, 40, None, 300, 1 << 40)
    ),
    **dict.fromkeys(("input_ids", "stop_token_ids", "token_ids_logprob"), IDS),
    **dict.fromkeys(("min_tokens", "min_new_tokens"), (0, 1, 5, 100)),
    **dict.fromkeys(("regex", "stop_regex"), PATTERNS),
    "json_schema": SCHEMAS,
    "ebnf": GRAMMARS,
    "structural_tag": ("{}", "x", '{"structures": [], "triggers": []}'),
    "stop": ("a", "", ["a", "b"], [""], ["hi"] * 40, "x" * 999),
    "logit_bias": (
        {"5": 1},
        {"5": -100, "6": 100.0},
        {},
        {"320": 1},
        {"-1": 1},
        {"x": 1},
        {"5": 1e39},
        {"5": float("nan")},
    ),
    "n": (1, 2, 3, 0, -1, 4, 1 << 40),
    "temperature": (0, 0.5, 1, 1.7, 1e-7, 1e30, -1, float("nan")),
    "top_p": (0, 0.5, 1, 1e-9, 2),
    "top_k": (-1, 1, 5, 1 << 40, 0),
    "min_p": (0, 0.1, 1, -1),
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), (0, 0.5, 2, -2, 3)),
    "repetition_penalty": (1, 1.2, 0.5, 0, 5),
    **dict.fromkeys(("logprobs", "top_logprobs", "top_logprobs_num"), (True, False, 0, 2, 5, 320, 321, -1)),
    "logprob_start_len": (-1, 0, 1, 5, 1 << 40, -7),
    "response_format": (
        {"type": "json_object"},
        {"type": "text"},
        *({"type": "json_schema", "json_schema": {"name": "a", "schema": s}} for s in ({}, {"type": "bogus"}, 5)),
    ),
    "tool_choice": ("auto", "required", "none", {"type": "function", "function": {"name": "f"}}),
}

OPTIONS: dict[str, tuple[Any, ...]] = {
    "mode": ("auto", "autoregressive", "diffusion", "self_speculation", "fast"),
    "algorithm": ("threshold", "confidence", "first_hitting", "verified", None, "x"),
    "block_length": (1, 2, 4, 8, 32, 33, 0, None),
    "threshold": (0, 0.3, 0.9, 1, None, 1.5),
    "steps": (1, 2, 8, 64, 0, None),
    "convergence_threshold": (0, 0.1, 1e6, -1, None),
    "stop_rule": ("eos", "upstream", None, "x"),
    "shift_logits": (True, False, None, 1),
}

SAMPLING = (
    *("max_new_tokens", "min_new_tokens", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k"),
    *("min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "n", "json_schema", "regex", "ebnf"),
    *("structural_tag", "ignore_eos", "skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim"),
    *("stream_interval", "logit_bias", "sampling_seed", "custom_params", "beam_width", "watermark"),
)
"""The parameters of `/generate`, which the OpenAPI schema leaves open; those without a pool take anything."""

INTERNAL = ("http_worker_ipc", "stream")
"""Fields that say where answers go, and one that is set apart."""


@dataclass(frozen=True)
class Request:
    """A request and when its client leaves; None is never."""

    path: str
    body: Any
    leaves_after: float | None
    unknown: str | None
    """The option that nobody knows, if there is one."""
    is_fine: bool
    """Whether nothing but that option is wrong with it."""

    def __str__(self) -> str:
        leaving = "" if self.leaves_after is None else f"  # left after {self.leaves_after:.3f} s"
        return f"{self.path} {json.dumps(self.body)}{leaving}"


class Requests:
    """The random requests of one seed to a server with this OpenAPI `specification`."""

    def __init__(self, specification: dict[str, Any], seed: int) -> None:
        self._schemas: dict[str, Any] = specification["components"]["schemas"]
        self._routes = {
            path: self._resolved(
                specification["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
            )["properties"]
            for path in ROUTES
        }
        self._seed = seed

    def __getitem__(self, number: int) -> Request:
        """The request of that number."""
        return _Draw(random.Random(f"{self._seed}/{number}"), self._routes, self._resolved).request()

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        """`schema` itself, where it is a reference."""
        found: dict[str, Any] = self._schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        return found


class _Draw:
    """Draws one request."""

    def __init__(
        self,
        rng: random.Random,
        routes: dict[str, dict[str, Any]],
        resolved: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        self._rng, self._routes, self._resolved = rng, routes, resolved

    def request(self) -> Request:
        rng = self._rng
        path = rng.choice(list(self._routes))
        leaves_after = rng.uniform(0, 0.4) if rng.random() < ABORT_SHARE else None
        if rng.random() < ABORT_ALL_SHARE:
            return Request("/abort_request", {"abort_all": True}, leaves_after, None, is_fine=True)
        if rng.random() < NO_BODY_SHARE:
            return Request(path, rng.choice(JUNK), leaves_after, None, is_fine=False)
        properties = self._routes[path]
        unknown = rng.choice(UNKNOWN) if rng.random() < 0.05 else None
        num_fields = min(int(rng.expovariate(0.4)), len(properties))
        names = [name for name in rng.sample(list(properties), num_fields) if name not in INTERNAL]
        body = self._base(path, unknown)
        for name in names:
            if unknown is None or name not in ("custom_params", "sampling_params"):
                body[name] = self._value(name, properties[name])
        body["stream"] = rng.random() < 0.4
        return Request(path, body, leaves_after, unknown, is_fine=not names)

    def _base(self, path: str, unknown: str | None) -> dict[str, Any]:
        """A request that is fine, but for the option `unknown`."""
        rng = self._rng
        options: dict[str, Any] = {"mode": "auto"} if unknown is None else {unknown: rng.choice((1, None, {}))}
        custom = {"custom_params": {"dlm": options}}
        length = rng.choice((1, 5, 12, 40))
        if path == "/generate":
            params: dict[str, Any] = {"max_new_tokens": length, **custom}
            if unknown is None:
                params |= {
                    name: self._value(name, {}) for name in rng.sample(SAMPLING, min(int(rng.expovariate(0.6)), 9))
                }
            return {"input_ids": [rng.randrange(5, 90) for _ in range(rng.randrange(1, 60))], "sampling_params": params}
        prompt: dict[str, Any] = (
            {"prompt": "hi"} if path in ("/v1/completions", "/api/generate") else {"messages": CHAT}
        )
        limit = {"options": {"num_predict": length}} if path.startswith("/api/") else {"max_tokens": length}
        return {"model": "default", **prompt, **limit, **custom}

    def _value(self, name: str, schema: dict[str, Any]) -> Any:
        """A value for the field `name`: one of its pool, one that its schema allows, or junk."""
        rng = self._rng
        if rng.random() < JUNK_SHARE:
            return rng.choice(JUNK)
        if name == "custom_params":
            return self._custom_params()
        if name == "sampling_params":
            params = {other: self._value(other, {}) for other in rng.sample(SAMPLING, rng.randrange(6))}
            return rng.choice((params, [params], [params, {}]))
        if name in POOLS and (not schema or rng.random() < 0.8):
            return rng.choice(POOLS[name])
        return self._of_schema(schema, MAX_DEPTH)

    def _custom_params(self) -> Any:
        """Options, some of them wrong, under their name or another."""
        rng = self._rng
        options = {name: rng.choice(OPTIONS[name]) for name in rng.sample(list(OPTIONS), rng.randrange(4))}
        if rng.random() < 0.2:
            options[rng.choice((*OPTIONS, *UNKNOWN))] = rng.choice(JUNK)
        custom: dict[str, Any] = {rng.choice(("dlm", "dlm", "dlm", "dlm_plan", "dllm")): options}
        if rng.random() < 0.2:
            custom[rng.choice(STRINGS)] = rng.choice(JUNK)
        return custom

    def _of_schema(self, schema: dict[str, Any], depth: int) -> Any:
        """A value that a JSON schema allows, more or less."""
        rng, schema = self._rng, self._resolved(schema)
        if choices := schema.get("anyOf") or schema.get("oneOf"):
            return self._of_schema(rng.choice(choices), depth)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return rng.choice(schema["enum"])
        kind = schema.get("type")
        if depth == 0 or kind is None:
            return rng.choice(JUNK)
        if kind == "array":
            return [self._of_schema(schema.get("items", {}), depth - 1) for _ in range(rng.randrange(4))]
        if kind == "object":
            return self._object(schema, depth)
        simple = {"integer": INTEGERS, "number": NUMBERS, "string": STRINGS, "boolean": (True, False), "null": (None,)}
        return rng.choice(simple[kind])

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        required, properties = schema.get("required", ()), schema.get("properties", {})
        names = [name for name in properties if name in required or self._rng.random() < 0.4]
        content = {name: self._of_schema(properties[name], depth - 1) for name in names}
        if schema.get("additionalProperties") and self._rng.random() < 0.5:
            content[self._rng.choice(STRINGS)] = self._rng.choice(JUNK)
        return content
