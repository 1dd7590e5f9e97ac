"""Run by test_tool_streams.py: texts with calls of tools, whole and cut into pieces; what SGLang finds, as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from sglang.srt.entrypoints.openai.protocol import Tool
from sglang.srt.function_call.function_call_parser import FunctionCallParser

from dlm_serve.sglang.frontend.tools import whole_piece


def streamed(parser: FunctionCallParser, pieces: list[str]) -> list[tuple[int, str | None, str]]:
    """What is found of calls, piece by piece: the number of a call, its name, arguments."""
    found = [call for piece in pieces for call in whole_piece(FunctionCallParser.parse_stream_chunk, parser, piece)[1]]
    found += parser.parse_stream_end()[1]
    return [(call.tool_index, call.name, call.parameters) for call in found]


def main(tools: list[Any], cases: list[tuple[str, str, list[list[str]]]]) -> None:
    known = [Tool(type="function", function=tool) for tool in tools]
    found = []
    for name, text, cuts in cases:
        _, calls = FunctionCallParser(known, name).parse_non_stream(text)
        whole = [(call.name, call.parameters) for call in calls]
        found.append((whole, [streamed(FunctionCallParser(known, name), pieces) for pieces in cuts]))
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
