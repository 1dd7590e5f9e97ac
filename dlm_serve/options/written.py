"""Name what a request asks for as the user wrote it: routes translate their fields into SGLang's."""

from __future__ import annotations

from collections.abc import Container

_WRITTEN_AS = {
    "json_schema": ("response_format", "tools", "text", "output_config", "format"),
    "structural_tag": ("response_format", "tools"),
    "return_logprob": ("logprobs", "top_logprobs", "include"),
    "top_logprobs_num": ("top_logprobs", "logprobs"),
    "min_new_tokens": ("min_tokens",),
    "max_new_tokens": ("max_tokens", "max_completion_tokens", "max_output_tokens"),
    "sampling_seed": ("seed",),
}
"""SGLang's fields, with those of the routes that may stand for them."""


def as_written(name: str, fields: Container[str]) -> str:
    """Return which of the `fields` of a body stands for SGLang's field `name`; `name` where none does."""
    return next((field for field in (name, *_WRITTEN_AS.get(name, ())) if field in fields), name)
