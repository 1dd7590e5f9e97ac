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
LINEAR = [(SPECULATION, width, None) for width in (32, 16, 4)]
ONE_FORWARD = [(SPECULATION, 32, budget) for budget in (64, 32)]


@pytest.mark.parametrize(
    ("options", "generation", "routing", "permitted"),
    [
        ({}, {}, {}, [*LINEAR, *ONE_FORWARD, (AR, 1, None)]),
        ({"speculation": "linear"}, {}, {}, [*LINEAR, (AR, 1, None)]),
        ({"speculation": "one_forward"}, {}, {}, [*ONE_FORWARD, (AR, 1, None)]),
        ({"speculation": "one_forward", "budget": 48}, {}, {}, [(SPECULATION, 32, 48), (AR, 1, None)]),
        ({}, {"speculation": "one_forward"}, {}, [*ONE_FORWARD, (AR, 1, None)]),
        ({}, {"draft_threshold": 0.5}, {}, [*LINEAR, (AR, 1, None)]),
        ({"block_length": 16}, {}, {}, [(SPECULATION, 16, None), (AR, 1, None)]),
        ({}, {"block_length": 16}, {}, [(SPECULATION, 16, None), (AR, 1, None)]),
        ({"block_length": 12}, {}, {}, [(SPECULATION, 12, None)]),
        ({}, {}, {"policy": "rules"}, [(SPECULATION, 32, None), (AR, 1, None)]),
        ({}, {}, {"policy": "fixed"}, [(SPECULATION, 32, None)]),
        (
            {},
            {"allow_lossy": True},
            {},
            [*LINEAR, *ONE_FORWARD, (AR, 1, None), (DIFFUSION, 32, None)],
        ),
        ({"mode": "self_speculation"}, {"allow_lossy": True}, {}, [(SPECULATION, 32, None)]),
        ({"mode": "self_speculation", "speculation": "one_forward"}, {}, {}, [(SPECULATION, 32, 64)]),
        ({"mode": "self_speculation"}, {"speculation": "one_forward", "budget": 24}, {}, [(SPECULATION, 32, 24)]),
        ({"speculation": "linear"}, {"speculation": "one_forward"}, {}, [*LINEAR, (AR, 1, None)]),
    ],
)
def test_among_what_the_router_chooses(
    options: dict[str, Any], generation: dict[str, Any], routing: dict[str, Any], permitted: list[tuple[Any, ...]]
) -> None:
    config = ServerConfig.model_validate(
        {"generation": generation, "routing": {"widths": [4, 32, 16], "budgets": [32, 64], **routing}}
    )
    plan = resolving.resolve(RequestOptions.parse(options), config, NEMOTRON_LABS_DIFFUSION, 32, ())
    assert [settings.choice for settings in plan.permitted] == permitted
    assert plan.is_free is (len(permitted) > 1)
    assert all(settings.steps <= settings.block_length for settings in plan.permitted)


@pytest.mark.parametrize(
    ("content", "family", "field", "says"),
    [
        ({"generation": {"allow_lossy": True}}, SDLM, "generation.allow_lossy", "always decode by diffusion"),
        ({"routing": {"policy": "rules"}}, BD3LM, "routing.policy", "always decode by diffusion"),
        ({"routing": {"hysteresis": 0.1}}, EFFICIENT_DLM, "routing.hysteresis", "always decode by diffusion"),
        ({"generation": {"speculation": "one_forward"}}, SDLM, "generation.speculation", "no self-speculation"),
        ({"routing": {"budgets": [64]}}, EFFICIENT_DLM, "routing.budgets", "no self-speculation"),
        (
            {"generation": {"speculation": "one_forward", "draft_threshold": 0.5}},
            NEMOTRON_LABS_DIFFUSION,
            "generation.draft_threshold",
            "drafts all masks at once",
        ),
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
def test_options_that_nothing_reads_are_refused(content: dict[str, Any], family: Family, field: str, says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        check_file(ServerConfig.model_validate(content), family, 4 if family is not NEMOTRON_LABS_DIFFUSION else 32)
    assert refusal.value.field == field
    assert says in refusal.value.limit
    assert refusal.value.remedy


@pytest.mark.parametrize("routing", [{"policy": "rules", "rules": {"short_answer": 9}}, {"latency_slo_ms": 9}])
def test_routing_options_of_the_policy(routing: dict[str, Any]) -> None:
    check_file(ServerConfig.model_validate({"routing": routing}), NEMOTRON_LABS_DIFFUSION, 32)


def test_without_a_gpu_budgets_are_those_that_the_file_names() -> None:
    plain = ServerConfig().without_a_gpu()
    assert plain.routing.budgets == ()
    assert plain.origins("file")["routing.budgets"] == "default"
    named = ServerConfig.model_validate({"routing": {"budgets": [32]}})
    assert named.without_a_gpu() == named


def test_without_budgets_to_choose_from_what_was_asked_for_stands() -> None:
    config = ServerConfig.model_validate({"routing": {"budgets": []}})
    plan = resolving.resolve(
        RequestOptions.parse({"speculation": "one_forward"}), config, NEMOTRON_LABS_DIFFUSION, 32, ()
    )
    assert [settings.choice for settings in plan.permitted] == [(SPECULATION, 32, 64), (AR, 1, None)]
