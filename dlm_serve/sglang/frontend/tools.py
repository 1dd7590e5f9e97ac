"""Stream the calls of tools from pieces of text that hold more than one token."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Found = tuple[str, list[Any]]
"""Text that belongs to no call, and what was found of calls."""

_RUN = re.compile(r"<[^<>\s]+>|\s+|[^<\s](?:[^<]*[^<\s])?|<")
"""A tag, white space, or what stands between those; together they are the whole piece."""

_MOST_PARTS = 128
"""What is left over waits for the next piece: no detector of SGLang's may keep the server from going on."""


def whole_piece(original: Callable[[Any, str], Found], parser: Any, chunk_text: str) -> Found:
    """Around `FunctionCallParser.parse_stream_chunk`: find all that a piece holds of text and calls.

    SGLang's detectors are written for single tokens. Text that comes with the tag behind it, many of them drop or take
    for a part of the call, so tags are read apart from what stands around them. Single tokens would do as well, but
    detectors read the call from its beginning again for each.
    """
    found = [_to_its_end(original, parser, run) for run in _RUN.findall(chunk_text) or [""]]
    return "".join(text for text, _ in found), [call for _, calls in found for call in calls]


def _to_its_end(original: Callable[[Any, str], Found], parser: Any, run: str) -> Found:
    """Find all that a run holds: detectors find the next thing, a name or arguments, and leave the rest for later."""
    text, calls = original(parser, run)
    text, calls = text or "", list(calls)
    for _ in range(_MOST_PARTS):
        more_text, more_calls = original(parser, "")
        if not more_text and not more_calls:
            break
        text += more_text or ""
        calls += more_calls
    return text, calls
