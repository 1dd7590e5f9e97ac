"""Run by test_tool_streams.py: texts with calls of tools, whole and cut into pieces; what SGLang finds, as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from sglang.srt.entrypoints.openai.protocol import Tool
from sglang.srt.function_call.function_call_parser import FunctionCallParser

from dlm_serve.sglang.frontend.tools import whole_piece

Found = tuple[str, list[tuple[int, str | None, str]]]
"""Text, and what was found of calls: the number of a call, its name, arguments."""


def streamed(parser: FunctionCallParser, pieces: list[str], is_hooked: bool) -> Found:
    """What is found piece by piece, by SGLang alone or with the hook around it."""
    read = FunctionCallParser.parse_stream_chunk
    found = [whole_piece(read, parser, piece) if is_hooked else read(parser, piece) for piece in pieces]
    found.append(parser.parse_stream_end())
    calls = [(call.tool_index, call.name, call.parameters) for _, calls in found for call in calls]
    return "".join(text or "" for text, _ in found), calls


def main(tools: list[Any], cases: list[tuple[str, str, list[str], list[list[str]]]]) -> None:
    known = [Tool(type="function", function=tool) for tool in tools]
    found = []
    for name, text, tokens, cuts in cases:
        _, calls = FunctionCallParser(known, name).parse_non_stream(text)
        whole = [(call.name, call.parameters) for call in calls]
        alone = streamed(FunctionCallParser(known, name), tokens, is_hooked=False)
        found.append((whole, alone, [streamed(FunctionCallParser(known, name), cut, is_hooked=True) for cut in cuts]))
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
