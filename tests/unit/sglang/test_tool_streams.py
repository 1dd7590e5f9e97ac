"""Calls of tools, streamed in pieces of any length, are those of the whole answer."""

from __future__ import annotations

import itertools
import json
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
    ("visit", {"city": 'Rome "x" ü, [1]', "days": [1, 2, 3]}),
    ("leave", {"city": "Lima", "days": []}),
    ("wait", {}),
]


def as_json(**names: str) -> list[str]:
    """Each call as JSON, with what `names` says its fields are called."""
    return [
        json.dumps({"name": name, names.get("arguments", "arguments"): arguments}, ensure_ascii=False)
        for name, arguments in CALLS
    ]


def tagged(calls: list[str]) -> str:
    """Calls between the tags of Qwen's and Hermes' models."""
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


TEXTS = {
    "qwen": f"Sure. {tagged(as_json())}",
    "hermes": tagged(as_json()),
    "llama3": f"<|python_tag|>{'; '.join(as_json(arguments='parameters'))}",
    "pythonic": "[visit(city='Rome', days=[1, 2]), leave(city='Lima', days=[])]",
}


def cuts(text: str) -> list[list[str]]:
    """The text in pieces of one character, in one piece, and in pieces of several lengths."""
    random = Random(0)
    found = [list(text), [text]]
    for longest in (4, 16, 64, 256) * 4:
        ends = [0]
        while ends[-1] < len(text):
            ends.append(ends[-1] + random.randint(1, longest))
        found.append([text[start:end] for start, end in itertools.pairwise(ends)])
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """The whole calls and the streamed ones, by the name of the parser."""
    cases = [(name, text, cuts(text)) for name, text in TEXTS.items()]
    return dict(zip(TEXTS, json.loads(output_of(SCRIPT, json.dumps([TOOLS, cases])).splitlines()[-1]), strict=True))


@pytest.mark.parametrize("name", TEXTS)
def test_streamed_calls_are_the_whole_ones(found: dict[str, Any], name: str) -> None:
    whole, streams = found[name]
    assert len(whole) >= 2
    for stream in streams:
        calls: dict[int, list[str]] = {}
        for number, function, arguments in stream:
            if function:  # comes first, and once
                assert number == len(calls)
                calls[number] = [function, ""]
            calls[number][1] += arguments
        assert [function for function, _ in calls.values()] == [function for function, _ in whole]
        assert [json.loads(arguments) for _, arguments in calls.values()] == [json.loads(text) for _, text in whole]


def test_a_detector_that_always_finds_something_does_not_hold_up_the_server() -> None:
    text, calls = whole_piece(lambda parser, piece: ("x", [piece]), None, "a piece")
    assert (set(text), calls[0], set(calls[1:])) == ({"x"}, "a piece", {""})
