"""What a server file may say about routing, and among what the router chooses then."""

from __future__ import annotations

from typing import Any

import pytest

from dlm_serve.decoding import Mode
from dlm_serve.errors import ConfigError
from dlm_serve.families import BD3LM, EFFICIENT_DLM, NEMOTRON_LABS_DIFFUSION, SDLM, Family
from dlm_serve.options import resolve as resolving
from dlm_serve.options.file_rules import check_file
from dlm_serve.options.request import RequestOptions
from dlm_serve.options.server_file import ServerConfig

AR, DIFFUSION, SPECULATION = Mode.AUTOREGRESSIVE, Mode.DIFFUSION, Mode.SELF_SPECULATION


@pytest.mark.parametrize(
    ("options", "generation", "routing", "permitted"),
    [
        ({}, {}, {}, [(SPECULATION, 32), (SPECULATION, 16), (SPECULATION, 4), (AR, 1)]),
        ({"block_length": 16}, {}, {}, [(SPECULATION, 16), (AR, 1)]),
        ({}, {"block_length": 16}, {}, [(SPECULATION, 16), (AR, 1)]),
        ({"block_length": 12}, {}, {}, [(SPECULATION, 12)]),
        ({}, {}, {"policy": "rules"}, [(SPECULATION, 32), (AR, 1)]),
        ({}, {}, {"policy": "fixed"}, [(SPECULATION, 32)]),
        (
            {},
            {"allow_lossy": True},
            {},
            [(SPECULATION, 32), (SPECULATION, 16), (SPECULATION, 4), (AR, 1), (DIFFUSION, 32)],
        ),
        ({"mode": "self_speculation"}, {"allow_lossy": True}, {}, [(SPECULATION, 32)]),
    ],
    ids=["all", "asked", "by the file", "no width", "rules", "fixed", "lossy", "pinned"],
)
def test_among_what_the_router_chooses(
    options: dict[str, Any], generation: dict[str, Any], routing: dict[str, Any], permitted: list[tuple[Mode, int]]
) -> None:
    config = ServerConfig.model_validate({"generation": generation, "routing": {"widths": [4, 32, 16], **routing}})
    plan = resolving.resolve(RequestOptions.parse(options), config, NEMOTRON_LABS_DIFFUSION, 32, ())
    assert [(settings.mode, settings.block_length) for settings in plan.permitted] == permitted
    assert plan.is_free is (len(permitted) > 1)
    assert all(settings.steps <= settings.block_length for settings in plan.permitted)


@pytest.mark.parametrize(
    ("content", "family", "field", "says"),
    [
        ({"generation": {"allow_lossy": True}}, SDLM, "generation.allow_lossy", "always decode by diffusion"),
        ({"routing": {"policy": "rules"}}, BD3LM, "routing.policy", "always decode by diffusion"),
        ({"routing": {"hysteresis": 0.1}}, EFFICIENT_DLM, "routing.hysteresis", "always decode by diffusion"),
        (
            {"generation": {"allow_lossy": True}, "routing": {"policy": "fixed"}},
            NEMOTRON_LABS_DIFFUSION,
            "generation.allow_lossy",
            "moves no request",
        ),
        ({"routing": {"rules": {}}}, NEMOTRON_LABS_DIFFUSION, "routing.rules", "the policy is measured"),
        (
            {"routing": {"policy": "rules", "latency_slo_ms": 9}},
            NEMOTRON_LABS_DIFFUSION,
            "routing.latency_slo_ms",
            "only routing.policy measured reads it",
        ),
    ],
)
def test_routing_options_that_nothing_reads_are_refused(
    content: dict[str, Any], family: Family, field: str, says: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        check_file(ServerConfig.model_validate(content), family, 4 if family is not NEMOTRON_LABS_DIFFUSION else 32)
    assert refusal.value.field == field
    assert says in refusal.value.limit
    assert refusal.value.remedy


@pytest.mark.parametrize("routing", [{"policy": "rules", "rules": {"short_answer": 9}}, {"latency_slo_ms": 9}])
def test_routing_options_of_the_policy(routing: dict[str, Any]) -> None:
    check_file(ServerConfig.model_validate({"routing": routing}), NEMOTRON_LABS_DIFFUSION, 32)
