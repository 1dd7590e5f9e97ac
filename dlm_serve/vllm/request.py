"""What of ours a request carries from admission to the scheduler and the model runner, in vLLM's SamplingParams."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter

from dlm_serve.decoding import Commit, ModeSettings, RowOptions

_KEY = "dlm_settings"
"""Where in `extra_args` the settings travel, as JSON."""

_SETTINGS = TypeAdapter(ModeSettings)


def with_settings(settings: ModeSettings) -> dict[str, str]:
    """Return the `extra_args` of a request that decodes so."""
    return {_KEY: _SETTINGS.dump_json(settings).decode()}


def settings_of(params: Any) -> ModeSettings:
    """Return how a request with these SamplingParams decodes, as admission wrote it."""
    return _read(params.extra_args[_KEY])


def is_admitted(params: Any) -> bool:
    """Return whether admission has written how a request with these SamplingParams decodes."""
    return _KEY in (params.extra_args or {})


def row_options_of(params: Any, commit: Commit, vocab_size: int) -> RowOptions:
    """Return what the device must know about a request with these SamplingParams."""
    stop_ids = {*(params.stop_token_ids or ()), params.eos_token_id} - {None}  # None where they are ignored
    options = commit.row_options(settings_of(params), params.seed, sorted(stop_ids), vocab_size)
    if params.temperature == 0:
        return options  # greedy
    top_k = params.top_k if params.top_k > 0 else vocab_size
    return replace(options, temperature=params.temperature, top_k=top_k, top_p=params.top_p, min_p=params.min_p)


@lru_cache(256)
def _read(text: str) -> ModeSettings:
    return _SETTINGS.validate_json(text)
