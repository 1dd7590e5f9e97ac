"""Stream the calls of tools from pieces of text that hold more than one token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Found = tuple[str, list[Any]]
"""Text that belongs to no call, and what was found of calls."""

_MOST_PARTS = 128
"""What is left over waits for the next piece: no detector of SGLang's may keep the server from going on."""


def whole_piece(original: Callable[[Any, str], Found], parser: Any, chunk_text: str) -> Found:
    """Around `FunctionCallParser.parse_stream_chunk`: find all that a piece holds of calls.

    SGLang's detectors find the next thing in what they have read, a name or arguments, and leave the rest to the next
    piece. A block may hold several calls and end the answer.
    """
    text, calls = original(parser, chunk_text)
    text, calls = text or "", list(calls)
    for _ in range(_MOST_PARTS):
        more_text, more_calls = original(parser, "")
        if not more_text and not more_calls:
            break
        text += more_text or ""
        calls += more_calls
    return text, calls
