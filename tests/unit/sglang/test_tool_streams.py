"""A stream of text and calls of tools, in pieces of any length, is what SGLang makes of single tokens."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
from processes import output_of

from dlm_serve.sglang.frontend.tools import whole_piece

SCRIPT = Path(__file__).parent / "tool_streams.py"

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "array"}}}
TOOLS = [{"name": name, "parameters": PARAMETERS} for name in ("visit", "leave", "wait")]
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("visit", {"city": 'Rome "x" ü, [1] < 2', "days": [1, 2, 3]}),
    ("leave", {"city": "Lima", "days": []}),
    ("wait", {}),
]


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def objects(arguments: str = "arguments") -> list[str]:
    """Each call as JSON, with what its arguments are called."""
    return [as_json({"name": name, arguments: values}) for name, values in CALLS]


def each(call: str, argument: str = "", between: str = "") -> str:
    """The calls by a template, with their `name`, `json` and arguments, these by one with their `key` and `value`."""
    written = []
    for name, values in CALLS:
        texts = {key: value if isinstance(value, str) else as_json(value) for key, value in values.items()}
        arguments = "".join(argument.format(key=key, value=value) for key, value in texts.items())
        written.append(call.format(name=name, json=as_json(values), arguments=arguments))
    return between.join(written)


def wide_bars(text: str) -> str:
    """Text whose tags have the bars of DeepSeek's."""
    return text.replace("|", "\uff5c")


BEFORE, BEHIND = "If 1 < 2, so. ", " That is > 1."
KEYS = "<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n"
FUNCTION = "<tool_call>\n<function={name}>\n{arguments}</function>\n</tool_call>"
CHANNEL = "<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{json}<|call|>"
WRITTEN = {
    "qwen": "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in objects()),
    "hermes": "\n".join(f"<tool_call>{call}</tool_call>" for call in objects()),
    "llama3": "<|python_tag|>" + "; ".join(objects("parameters")),
    "pythonic": "[visit(city='Rome', days=[1, 2]), leave(city='Lima', days=[])]",
    "lfm2": "<|tool_call_start|>[visit(city='Rome', days=[1, 2]), leave(city='Lima', days=[])]<|tool_call_end|>",
    "mistral, compact": each("[TOOL_CALLS]{name}[ARGS]{json}"),
    "mistral": f"[TOOL_CALLS] [{', '.join(objects())}]",
    "interns1": "".join(f"<|action_start|> <|plugin|>\n{call}<|action_end|>" for call in objects("parameters")),
    "deepseekv3": wide_bars(
        "<|tool▁calls▁begin|>"
        + each("<|tool▁call▁begin|>function<|tool▁sep|>{name}\n```json\n{json}\n```<|tool▁call▁end|>", between="\n")
        + "<|tool▁calls▁end|>"
    ),
    "deepseekv31": wide_bars(
        "<|tool▁calls▁begin|>"
        + each("<|tool▁call▁begin|>{name}<|tool▁sep|>{json}<|tool▁call▁end|>")
        + "<|tool▁calls▁end|>"
    ),
    "kimi_k2": "<|tool_calls_section_begin|>"
    + each("<|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>{json}<|tool_call_end|>")
    + "<|tool_calls_section_end|>",
    "glm45": each("<tool_call>{name}\n{arguments}</tool_call>", KEYS, between="\n"),
    "glm47": each("<tool_call>{name}{arguments}</tool_call>", KEYS.replace("\n", "")),
    "qwen3_coder": each(FUNCTION, "<parameter={key}>\n{value}\n</parameter>\n", between="\n"),
    "mimo": each(FUNCTION, "<parameter={key}>{value}</parameter>\n", between="\n"),
    "gpt-oss": each(CHANNEL, between="<|start|>assistant") + "<|start|>assistant<|channel|>final<|message|>",
    "step3": wide_bars(
        "<|tool_calls_begin|>\n"
        + each(
            '<|tool_call_begin|>function<|tool_sep|><steptml:invoke name="{name}">\n'
            "{arguments}</steptml:invoke><|tool_call_end|>\n",
            '<steptml:parameter name="{key}">{value}</steptml:parameter>\n',
        )
        + "<|tool_calls_end|>"
    ),
    "minimax-m2": "<minimax:tool_call>\n"
    + each('<invoke name="{name}">\n{arguments}</invoke>\n', '<parameter name="{key}">{value}</parameter>\n')
    + "</minimax:tool_call>",
}
"""Calls as models write them, by the parser that reads them."""

TAGS_ARE_TOKENS = ("deepseekv3", "deepseekv31", "kimi_k2", "mimo", "gpt-oss", "minimax-m2")
"""Parsers that miss a tag that comes in two pieces."""

LOSE_LATER_CALLS = ("mistral", "interns1")
SEND_NO_EMPTY_ARGUMENTS = ("step3", "minimax-m2")
DROP_TEXT_BEHIND = ("qwen", "interns1", "mimo", "minimax-m2")
"""What SGLang makes of single tokens, where that is not the whole answer."""

TOKEN = re.compile(r"<[^<>\s]+>|.", re.DOTALL)


def text_of(name: str) -> str:
    """An answer with text before and behind its calls."""
    return ("" if name == "gpt-oss" else BEFORE) + WRITTEN[name] + BEHIND


def cuts(tokens: list[str]) -> list[list[str]]:
    """The tokens one by one, in one piece, and in pieces of several lengths."""
    random = Random(0)
    found = [tokens, ["".join(tokens)]]
    for longest in (4, 16, 64, 256) * 4:
        ends = [0]
        while ends[-1] < len(tokens):
            ends.append(ends[-1] + random.randint(1, longest))
        found.append(["".join(tokens[start:end]) for start, end in itertools.pairwise(ends)])
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """The whole calls, what SGLang finds alone, and the streams, by the name in `WRITTEN`."""
    cases = []
    for name in WRITTEN:
        text, tokens = text_of(name), TOKEN.findall(text_of(name))
        pieces = cuts(tokens if name in TAGS_ARE_TOKENS else list(text))
        cases.append((name.partition(",")[0], text, tokens, pieces))
    return dict(zip(WRITTEN, json.loads(output_of(SCRIPT, json.dumps([TOOLS, cases])).splitlines()[-1]), strict=True))


def put_together(parts: list[tuple[int, str | None, str]]) -> list[tuple[str, Any]]:
    """The calls of a stream, in their order; those without arguments have None."""
    calls: dict[int, tuple[str, str]] = {}
    for number, name, arguments in parts:
        if name:  # comes first, and once
            assert number == len(calls)
            calls[number] = (name, "")
        name, before = calls[number]
        calls[number] = (name, before + arguments)
    return [(name, json.loads(arguments) if arguments else None) for name, arguments in calls.values()]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_stream_is_that_of_single_tokens(found: dict[str, Any], name: str) -> None:
    _, (text, parts), streams = found[name]
    expected = (text, put_together(parts))
    assert [(text, put_together(parts)) for text, parts in streams] == [expected] * len(streams)


@pytest.mark.parametrize("name", WRITTEN)
def test_single_tokens_give_the_whole_answer(found: dict[str, Any], name: str) -> None:
    whole, (text, parts), _ = found[name]
    calls = [(function, json.loads(arguments)) for function, arguments in whole]
    assert len(calls) >= 2
    if name in LOSE_LATER_CALLS:
        calls = calls[:1]
    if name in SEND_NO_EMPTY_ARGUMENTS:
        calls = [(function, arguments or None) for function, arguments in calls]
    assert put_together(parts) == calls
    assert text.startswith("" if name == "gpt-oss" else BEFORE)
    assert text.endswith(BEHIND.strip()) == (name not in DROP_TEXT_BEHIND)


def test_a_detector_that_always_finds_something_does_not_hold_up_the_server() -> None:
    text, calls = whole_piece(lambda parser, piece: ("x", [piece]), None, "a piece")
    assert (set(text), calls[0], set(calls[1:])) == ({"x"}, "a piece", {""})
