"""Answer the options that articles on servers of diffusion language models name otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple


class Ours(NamedTuple):
    """What takes the place of an option."""

    in_file: str
    in_request: str


ARTICLE_NAMES = {
    "block_size": Ours("generation.block_length", "block_length"),
    "refinement_steps": Ours("generation.steps", "steps"),
    "early_stop_enabled": Ours("generation.convergence_threshold", "convergence_threshold"),
    "auto_switch_token_threshold": Ours("routing.rules.short_answer, with routing.policy: rules", "mode: auto"),
    "fallback_to_ar_on_timeout": Ours("routing.latency_slo_ms, which bounds steps", "mode: auto"),
    "timeout_ms": Ours("routing.latency_slo_ms, which bounds steps", "none: requests are not timed out"),
    "cache_strategy": Ours(
        "none: the family decides whose KV is kept, and SGLang's flag --disable-radix-cache whether prompts share it",
        "none: the family decides whose KV is kept",
    ),
    "masking": Ours(
        "generation.threshold and generation.steps, which decide what stays masked",
        "threshold and steps, which decide what stays masked",
    ),
    "target_dtype": Ours("SGLang's flag --quantization or --dtype", "none: the server's flags decide"),
}


class Renamed(NamedTuple):
    """An option under another's name: where it stands, its value and ours."""

    location: tuple[str, ...]
    value: object
    ours: Ours


def renamed_options(location: tuple[str, ...], value: object) -> Iterator[Renamed]:
    """Yield what an article names otherwise of the unknown option at `location`, or of what is inside of it."""
    if ours := ARTICLE_NAMES.get(location[-1]):
        yield Renamed(location, value, ours)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from renamed_options((*location, str(name)), inner)
