"""What a request and a server file may say, what the two come to, and how a refusal reads."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from dlm_serve.decoding import BlockAlgorithm, DecodePlan, Mode, ModeSettings, StopRule
from dlm_serve.errors import CheckpointError, ConfigError, InvalidValueError, OptionError
from dlm_serve.families import BD3LM, NEMOTRON_LABS_DIFFUSION, Family
from dlm_serve.options import resolve as resolving
from dlm_serve.options.article_names import ARTICLE_NAMES
from dlm_serve.options.file_rules import check_file
from dlm_serve.options.needs import Need
from dlm_serve.options.request import OPTIONS_FIELD, RequestOptions
from dlm_serve.options.request_rules import PLAN
from dlm_serve.options.server_file import (
    CONFIG_VARIABLE,
    GenerationConfig,
    LoraConfig,
    RoutingConfig,
    RulesConfig,
    ServerConfig,
)

AR, DIFFUSION, SPECULATION = Mode.AUTOREGRESSIVE, Mode.DIFFUSION, Mode.SELF_SPECULATION
BLOCK_SIZE = 8


def plan_of(
    options: dict[str, Any] | None,
    generation: dict[str, Any] | None = None,
    *,
    widths: tuple[int, ...] = (4, 8, 16, 32),
    block_size: int = BLOCK_SIZE,
    needs: tuple[str, ...] = (),
    family: Family = NEMOTRON_LABS_DIFFUSION,
) -> DecodePlan:
    """The plan of a request on a server whose file has this `generation` section."""
    config = ServerConfig.model_validate({"generation": generation or {}, "routing": {"widths": widths}})
    needed = [Need(name, f"its {name}") for name in needs]
    return resolving.resolve(RequestOptions.parse(options), config, family, block_size, needed)


def resolve(options: dict[str, Any] | None, generation: dict[str, Any] | None = None, **more: Any) -> ModeSettings:
    """The settings with which a request starts."""
    return plan_of(options, generation, **more).permitted[0]


def check_message(error: InvalidValueError) -> None:
    """A refusal says field, value, limit and remedy, each non-empty."""
    assert error.limit
    assert error.remedy
    assert str(error) == f"{error.field} = {error.value!r}: {error.limit}; {error.remedy}."


# --- What a request may say ---


@pytest.mark.parametrize(
    "raw",
    [
        None,
        {},
        {"mode": "auto"},
        {"mode": None, "block_length": None, "threshold": None, "steps": None, "convergence_threshold": None},
        {"threshold": 0},
        {"threshold": 1},
        {"threshold": 0.25, "steps": 1, "block_length": 1, "convergence_threshold": 0},
        {"steps": 64, "block_length": 64},
        {"convergence_threshold": 1e6},
        *({"mode": str(mode)} for mode in Mode),
    ],
    ids=repr,
)
def test_options_in_range_are_kept(raw: dict[str, Any] | None) -> None:
    options = RequestOptions.parse(raw)
    assert {name: getattr(options, name) for name in options.model_fields_set} == (raw or {})


def test_absent_is_not_null() -> None:
    assert RequestOptions.parse({"threshold": None}).model_fields_set == {"threshold"}
    assert RequestOptions.parse({}).model_fields_set == set()


NOT_A_COUNT = [0, -1, 65, 1.5, 8.0, math.nan, math.inf, True, False, "8", "", [8], {}]
NOT_A_PROBABILITY = [-0.1, 1.0001, 90, math.nan, math.inf, -math.inf, True, False, "0.9", "high", [0.9], {}]
NOT_NATS = [-1e-9, math.nan, math.inf, -math.inf, True, False, "0.1", "never", [0.1], {}]
NOT_A_MODE = ["", "Diffusion", "ar", "linear_spec", 1, True, ["auto"], {}]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("block_length", value) for value in NOT_A_COUNT),
        *(("steps", value) for value in NOT_A_COUNT),
        *(("threshold", value) for value in NOT_A_PROBABILITY),
        *(("convergence_threshold", value) for value in NOT_NATS),
        *(("mode", value) for value in NOT_A_MODE),
    ],
    ids=repr,
)
def test_options_out_of_range_or_of_another_type_are_refused(field: str, value: object) -> None:
    with pytest.raises(OptionError) as refusal:
        RequestOptions.parse({field: value})
    assert refusal.value.field == f"{OPTIONS_FIELD}.{field}"
    assert refusal.value.value is value
    check_message(refusal.value)


@pytest.mark.parametrize("raw", [[], [1], "diffusion", 5, True, {1: 2}], ids=repr)
def test_options_must_be_a_mapping_of_names(raw: object) -> None:
    with pytest.raises(OptionError) as refusal:
        RequestOptions.parse(raw)
    assert refusal.value.field == OPTIONS_FIELD
    check_message(refusal.value)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("treshold", "did you mean 'threshold'"),
        ("blocklength", "did you mean 'block_length'"),
        ("step", "did you mean 'steps'"),
        ("modus", "did you mean 'mode'"),
        (
            "xyz",
            f"known options are {', '.join(sorted(RequestOptions.model_fields))}",
        ),
        ("draft_threshold", "threshold"),
        ("refinement_steps", "steps"),
        ("early_stop_enabled", "convergence_threshold"),
        ("auto_switch_token_threshold", "mode: auto"),
        ("fallback_to_ar_on_timeout", "mode: auto"),
        ("timeout_ms", "not timed out"),
    ],
)
def test_an_unknown_option_is_answered_with_ours(name: str, remedy: str) -> None:
    with pytest.raises(OptionError) as refusal:
        RequestOptions.parse({"mode": "diffusion", name: 3})
    assert (refusal.value.field, refusal.value.value) == (f"{OPTIONS_FIELD}.{name}", 3)
    assert remedy in refusal.value.remedy
    check_message(refusal.value)


# --- What the options and the file come to ---


@pytest.mark.parametrize(
    ("options", "generation", "needs", "mode"),
    [
        ({}, {}, (), SPECULATION),
        ({"mode": "auto"}, {}, (), SPECULATION),
        ({"mode": None}, {}, (), SPECULATION),
        ({}, {"mode": "diffusion"}, (), DIFFUSION),
        ({"mode": None}, {"mode": "diffusion"}, (), DIFFUSION),
        ({"mode": "auto"}, {"mode": "diffusion"}, (), SPECULATION),
        ({"mode": "autoregressive"}, {"mode": "diffusion"}, (), AR),
        ({"mode": "diffusion"}, {"mode": "autoregressive"}, (), DIFFUSION),
        ({"mode": "self_speculation"}, {"mode": "diffusion"}, (), SPECULATION),
        ({}, {}, ("regex",), SPECULATION),
        ({"mode": "self_speculation"}, {}, ("regex", "min_new_tokens"), SPECULATION),
        ({"mode": "autoregressive"}, {}, ("regex",), AR),
        ({}, {"mode": "diffusion"}, ("regex",), SPECULATION),
        ({}, {"mode": "diffusion"}, ("return_logprob",), DIFFUSION),
        ({"mode": "diffusion"}, {}, ("return_logprob",), DIFFUSION),
        ({"mode": "auto"}, {}, ("custom_logit_processor",), AR),
        ({}, {"mode": "diffusion"}, ("regex", "custom_logit_processor"), AR),
    ],
)
def test_mode(options: dict[str, Any], generation: dict[str, Any], needs: tuple[str, ...], mode: Mode) -> None:
    """The request's, else the file's; auto is self-speculation, or what the request needs."""
    assert resolve(options, generation, needs=needs).mode is mode


@pytest.mark.parametrize(
    ("mode", "needs"),
    [("diffusion", ("regex", "logit_bias")), ("self_speculation", ("custom_logit_processor",))],
)
def test_a_pinned_mode_that_cannot_honour_the_request_is_refused_with_all_reasons(
    mode: str, needs: tuple[str, ...]
) -> None:
    with pytest.raises(OptionError) as refusal:
        resolve({"mode": mode}, needs=("return_logprob", *needs))
    assert (refusal.value.field, refusal.value.value) == (f"{OPTIONS_FIELD}.mode", mode)
    assert refusal.value.limit == "does not support " + ", ".join(f"its {name}" for name in needs)
    assert "auto" in refusal.value.remedy
    check_message(refusal.value)


def test_autoregressive_decodes_one_token_at_a_time() -> None:
    plan = resolve({"mode": "autoregressive"}, {"block_length": 16, "steps": 4, "convergence_threshold": 0.5})
    assert plan == ModeSettings(
        mode=Mode.AUTOREGRESSIVE, block_length=1, threshold=None, steps=1, convergence_threshold=None
    )


@pytest.mark.parametrize(
    ("options", "generation", "block_length"),
    [
        ({}, {}, BLOCK_SIZE),
        ({}, {"block_length": 16}, 16),
        ({"block_length": None}, {"block_length": 16}, 16),
        ({"block_length": 5}, {"block_length": 16}, 5),
        ({"block_length": 1}, {}, 1),
        ({"block_length": 32}, {}, 32),
    ],
)
@pytest.mark.parametrize("mode", ["diffusion", "self_speculation"])
def test_block_length(mode: str, options: dict[str, Any], generation: dict[str, Any], block_length: int) -> None:
    """The request's, else the file's, else the checkpoint's; any up to the widest, captured or not."""
    plan = resolve({"mode": mode, **options}, generation)
    assert (plan.block_length, plan.steps) == (block_length, block_length)


def test_a_checkpoint_wider_than_the_server_is_served_at_the_servers_width() -> None:
    assert resolve({"mode": "diffusion"}, widths=(4, 8), block_size=32).block_length == 8


@pytest.mark.parametrize(("widths", "block_length"), [((4, 8, 16, 32), 33), ((8, 4), 9), ((1,), 2)])
def test_a_block_wider_than_the_server_is_refused(widths: tuple[int, ...], block_length: int) -> None:
    with pytest.raises(OptionError) as refusal:
        resolve({"mode": "diffusion", "block_length": block_length}, widths=widths)
    assert (refusal.value.field, refusal.value.value) == (f"{OPTIONS_FIELD}.block_length", block_length)
    assert f"at most {max(widths)}" in refusal.value.limit
    check_message(refusal.value)


@pytest.mark.parametrize(
    ("options", "generation", "threshold", "steps"),
    [
        ({}, {}, 0.9, 8),
        ({}, {"threshold": 0.7}, 0.7, 8),
        ({}, {"threshold": None}, None, 8),
        ({}, {"threshold": None, "steps": 3}, None, 3),
        ({}, {"steps": 3}, 0.9, 3),
        ({}, {"steps": 40}, 0.9, 8),
        ({"threshold": 0.5}, {"threshold": None}, 0.5, 8),
        ({"threshold": 0}, {}, 0.0, 8),
        ({"threshold": None}, {}, None, 8),
        ({"threshold": None}, {"steps": 3}, None, 3),
        ({"steps": 4}, {}, None, 4),
        ({"steps": 4}, {"steps": 3}, None, 4),
        ({"steps": None}, {}, 0.9, 8),
        ({"steps": None}, {"steps": 3}, 0.9, 8),
        ({"threshold": None, "steps": 4}, {}, None, 4),
        ({"threshold": 0.6, "steps": 4}, {}, 0.6, 4),
        ({"threshold": None, "steps": None}, {"steps": 3}, None, 8),
        ({"steps": 8}, {}, None, 8),
        ({"steps": 1}, {}, None, 1),
    ],
)
def test_threshold_and_steps_of_diffusion(
    options: dict[str, Any], generation: dict[str, Any], threshold: float | None, steps: int
) -> None:
    """Steps without a threshold mean the fixed schedule; both mean at most so many; null is said, not absent."""
    plan = resolve({"mode": "diffusion", **options}, generation)
    assert (plan.threshold, plan.steps) == (threshold, steps)


@pytest.mark.parametrize(
    ("options", "generation", "threshold", "steps"),
    [
        ({}, {}, 0.0, 8),
        ({}, {"threshold": 0.7}, 0.0, 8),
        ({}, {"threshold": None}, 0.0, 8),
        ({}, {"draft_threshold": 0.4}, 0.4, 8),
        ({"threshold": 0.6}, {"draft_threshold": 0.4}, 0.6, 8),
        ({"threshold": 0.6, "steps": 2}, {}, 0.6, 2),
        ({"steps": None}, {"draft_threshold": 0.4}, 0.4, 8),
    ],
)
def test_threshold_and_steps_of_self_speculation(
    options: dict[str, Any], generation: dict[str, Any], threshold: float, steps: int
) -> None:
    """Its own default: one draft forward."""
    plan = resolve({"mode": "self_speculation", **options}, generation)
    assert (plan.threshold, plan.steps) == (threshold, steps)


@pytest.mark.parametrize("options", [{"threshold": None}, {"steps": 4}, {"threshold": None, "steps": 4}], ids=repr)
def test_self_speculation_has_no_fixed_schedule(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as refusal:
        resolve({"mode": "self_speculation", **options})
    name = "threshold" if "threshold" in options else "steps"
    assert (refusal.value.field, refusal.value.value) == (f"{OPTIONS_FIELD}.{name}", options[name])
    assert "diffusion" in refusal.value.remedy
    check_message(refusal.value)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "diffusion", "steps": 9},
        {"mode": "diffusion", "steps": 9, "threshold": 0.5},
        {"mode": "self_speculation", "steps": 9, "threshold": 0.5},
        {"mode": "diffusion", "steps": 9, "block_length": 4},
    ],
    ids=repr,
)
def test_more_steps_than_tokens_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as refusal:
        resolve(options)
    assert (refusal.value.field, refusal.value.value) == (f"{OPTIONS_FIELD}.steps", 9)
    assert f"{options.get('block_length', BLOCK_SIZE)}" in refusal.value.limit
    check_message(refusal.value)


@pytest.mark.parametrize(
    ("options", "generation", "convergence_threshold"),
    [
        ({}, {}, None),
        ({}, {"convergence_threshold": 0.1}, 0.1),
        ({"convergence_threshold": 0.2}, {"convergence_threshold": 0.1}, 0.2),
        ({"convergence_threshold": None}, {"convergence_threshold": 0.1}, None),
        ({"convergence_threshold": 0}, {"convergence_threshold": 0.1}, 0.0),
    ],
)
@pytest.mark.parametrize("mode", ["diffusion", "self_speculation"])
def test_convergence_threshold(
    mode: str, options: dict[str, Any], generation: dict[str, Any], convergence_threshold: float | None
) -> None:
    assert resolve({"mode": mode, **options}, generation).convergence_threshold == convergence_threshold


def test_a_plan_survives_its_way_to_the_scheduler() -> None:
    """It travels as JSON."""
    plan = plan_of({"mode": "auto", "block_length": 4})
    assert PLAN.validate_json(PLAN.dump_json(plan)) == plan


@pytest.mark.parametrize("permitted", [[], [{"mode": "auto", "block_length": 8}]], ids=["none", "auto"])
def test_a_plan_leaves_no_mode_open(permitted: list[dict[str, Any]]) -> None:
    with pytest.raises(ValidationError):
        PLAN.validate_python({"permitted": permitted})


@pytest.mark.parametrize(
    ("options", "generation", "family", "modes"),
    [
        ({}, {}, NEMOTRON_LABS_DIFFUSION, [SPECULATION, AR]),
        ({"mode": "auto"}, {"mode": "diffusion"}, NEMOTRON_LABS_DIFFUSION, [SPECULATION, AR]),
        ({"mode": "self_speculation"}, {}, NEMOTRON_LABS_DIFFUSION, [SPECULATION]),
        ({}, {"mode": "self_speculation"}, NEMOTRON_LABS_DIFFUSION, [SPECULATION]),
        ({"steps": 2}, {}, NEMOTRON_LABS_DIFFUSION, [DIFFUSION]),
        ({}, {}, BD3LM, [DIFFUSION]),
    ],
)
def test_auto_permits_the_modes_with_the_same_answers(
    options: dict[str, Any], generation: dict[str, Any], family: Family, modes: list[Mode]
) -> None:
    """It starts with the first; a mode that was asked for is the only one."""
    assert list(dict.fromkeys(s.mode for s in plan_of(options, generation, family=family).permitted)) == modes


@pytest.mark.parametrize("generation", [{}, {"allow_lossy": True}, {"mode": "diffusion", "allow_lossy": True}], ids=str)
@pytest.mark.parametrize(
    ("needs", "modes"), [(("regex",), [SPECULATION, AR]), (("regex", "custom_logit_processor"), [AR])]
)
def test_a_plan_permits_only_what_honours_the_request(
    generation: dict[str, Any], needs: tuple[str, ...], modes: list[Mode]
) -> None:
    """The server's own mode gives way as auto does."""
    assert list(dict.fromkeys(s.mode for s in plan_of({}, generation, needs=needs).permitted)) == modes


# --- The server's file ---


def load(folder: Path, text: str) -> ServerConfig:
    (folder / "server.yaml").write_text(text)
    return ServerConfig.load(str(folder / "server.yaml"))


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "{}", "generation: {}"], ids=repr)
def test_an_empty_file_is_the_defaults(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) == ServerConfig()


def test_defaults() -> None:
    config = ServerConfig()
    assert config.generation.model_dump(mode="json") == {
        "mode": "auto",
        "block_length": None,
        "threshold": 0.9,
        "draft_threshold": 0.0,
        "speculation": None,
        "budget": 64,
        "group_form": "masks",
        "steps": None,
        "convergence_threshold": None,
        "prefill": None,
        "allow_lossy": False,
    }
    assert (config.routing.policy, config.routing.latency_slo_ms) == ("measured", None)
    assert config.routing.widths == (4, 8, 16, 32)
    assert config.lora.draft_adapter == "auto"


def test_a_file_is_read(tmp_path: Path) -> None:
    text = """
generation: {mode: diffusion, block_length: 16, threshold: null, steps: 4, convergence_threshold: 0.05}
routing: {widths: [16, 8]}
lora: {draft_adapter: none}
"""
    config = load(tmp_path, text)
    assert config.generation.mode is DIFFUSION
    assert (config.generation.block_length, config.generation.threshold, config.generation.steps) == (16, None, 4)
    assert config.generation.convergence_threshold == 0.05
    assert config.routing.max_width == 16
    assert config.lora.draft_adapter == "none"


def test_the_variable_names_the_file_unless_the_flag_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, steps in (("flag", 3), ("variable", 5)):
        (tmp_path / name).write_text(f"generation: {{steps: {steps}}}")
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    assert ServerConfig.load(None) == ServerConfig()
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "variable"))
    assert ServerConfig.load(None).generation.steps == 5
    assert ServerConfig.load(str(tmp_path / "flag")).generation.steps == 3


def test_each_option_says_where_it_is_from(tmp_path: Path) -> None:
    """Also one that the file gives as it would be by default."""
    config = load(tmp_path, "generation: {threshold: 0.9}\nrouting: {widths: [8]}")
    origins = config.origins("server.yaml")
    given = {name for name, origin in origins.items() if origin == "server file server.yaml"}
    assert given == {"generation.threshold", "routing.widths"}
    assert set(origins.values()) == {"server file server.yaml", "default"}
    assert {"generation.steps", "routing.policy", "lora.draft_adapter"} < origins.keys()


@pytest.mark.parametrize(
    ("text", "field", "value", "says"),
    [
        ("generatoin: {}", "generatoin", {}, "did you mean 'generation'"),
        ("generation: {treshold: 0.5}", "generation.treshold", 0.5, "did you mean 'threshold'"),
        ("generation: {draft_treshold: 0.5}", "generation.draft_treshold", 0.5, "did you mean 'draft_threshold'"),
        ("routing: {width: [4]}", "routing.width", [4], "did you mean 'widths'"),
        ("lora: {adapter: none}", "lora.adapter", "none", "did you mean 'draft_adapter'"),
        ("lora: {xyz: 1}", "lora.xyz", 1, "known options are draft_adapter"),
        ("threshold: 0.5", "threshold", 0.5, "known options are generation, lora, routing"),
        ("refinement_steps: 4", "refinement_steps", 4, "ours is generation.steps"),
        ("generation: {refinement_steps: 4}", "generation.refinement_steps", 4, "ours is generation.steps"),
        ("early_stop_enabled: true", "early_stop_enabled", True, "ours is generation.convergence_threshold"),
        ("auto_switch_token_threshold: 9", "auto_switch_token_threshold", 9, "ours is routing.rules.short_answer"),
        ("fallback_to_ar_on_timeout: true", "fallback_to_ar_on_timeout", True, "ours is routing.latency_slo_ms"),
        ("timeout_ms: 100", "timeout_ms", 100, "ours is routing.latency_slo_ms"),
        ("generation: {threshold: 1.5}", "generation.threshold", 1.5, "less than or equal to 1"),
        ("generation: {draft_threshold: null}", "generation.draft_threshold", None, "number"),
        ("generation: {mode: fast}", "generation.mode", "fast", "'diffusion'"),
        ("generation: {block_length: 65}", "generation.block_length", 65, "less than or equal to 64"),
        ("generation: {steps: 0}", "generation.steps", 0, "greater than or equal to 1"),
        ("generation: {convergence_threshold: -1}", "generation.convergence_threshold", -1, "greater than"),
        ("generation: null", "generation", None, "mapping"),
        ("generation: [1]", "generation", [1], "mapping"),
        ("routing: {widths: []}", "routing.widths", [], "at least 1"),
        ("routing: {widths: 8}", "routing.widths", 8, "tuple"),
        ("routing: {widths: [8, 0]}", "routing.widths", 0, "greater than or equal to 1"),
        ("routing: {widths: [8, 128]}", "routing.widths", 128, "less than or equal to 64"),
        ("routing: {policy: fast}", "routing.policy", "fast", "'measured'"),
        ("routing: {hysteresis: 2}", "routing.hysteresis", 2, "less than or equal to 1"),
        ("routing: {latency_slo_ms: 0}", "routing.latency_slo_ms", 0, "greater than 0"),
        ("routing: {rules: {short_answers: 9}}", "routing.rules.short_answers", 9, "did you mean 'short_answer'"),
        ("lora: {draft_adapter: null}", "lora.draft_adapter", None, "string"),
    ],
)
def test_a_wrong_entry_is_refused(tmp_path: Path, text: str, field: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(tmp_path, text)
    assert refusal.value.field == f"{tmp_path / 'server.yaml'}.{field}"
    assert refusal.value.value == value
    assert says in str(refusal.value)
    check_message(refusal.value)


OF_AN_ARTICLE = """
model: {block_size: 32}
generation: {refinement_steps: 8, convergence_threshold: 0.1, cache_strategy: block, early_stop_enabled: true,
  masking: {strategy: confidence}}
routing: {auto_switch_token_threshold: 64, fallback_to_ar_on_timeout: true, timeout_ms: 500}
quantization: {target_dtype: fp8}
"""


def test_the_file_of_an_article_is_answered_key_by_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(tmp_path, OF_AN_ARTICLE)
    check_message(refusal.value)
    assert refusal.value.field.startswith(str(tmp_path / "server.yaml"))
    message = str(refusal.value)
    for section, keys in yaml.safe_load(OF_AN_ARTICLE).items():
        for key in keys.keys() - GenerationConfig.model_fields.keys():
            assert f"{section}.{key}" in message
            assert ARTICLE_NAMES[key].in_file in message


@pytest.mark.parametrize("name", ARTICLE_NAMES)
def test_no_option_of_ours_has_the_name_of_an_articles(name: str) -> None:
    ours = (RequestOptions, ServerConfig, GenerationConfig, RoutingConfig, RulesConfig, LoraConfig)
    assert not any(name in model.model_fields for model in ours)


@pytest.mark.parametrize("text", ["[1]", "[]", "words", "5", "0", "false"], ids=repr)
def test_a_file_must_be_a_mapping(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="mapping"):
        load(tmp_path, text)


@pytest.mark.parametrize(
    "content", [b"{", b"a: [1", b"\tx: 1", b"\xff\xfe\x00x"], ids=["brace", "bracket", "tab", "not-utf-8"]
)
def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "server.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as refusal:
        ServerConfig.load(str(file))
    assert refusal.value.value == str(file)
    assert "cannot be read" in refusal.value.limit


@pytest.mark.parametrize("name", [".", "absent.yaml"], ids=["folder", "absent"])
def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        ServerConfig.load(str(tmp_path / name))


# --- Errors ---


@pytest.mark.parametrize("kind", [OptionError, ConfigError, CheckpointError])
def test_an_error_survives_its_way_between_processes(kind: type[InvalidValueError]) -> None:
    error = kind("steps", 9, "at most 8", "lower it")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error) == "steps = 9: at most 8; lower it."
    assert (copy.field, copy.value, copy.limit, copy.remedy) == ("steps", 9, "at most 8", "lower it")
    assert isinstance(error, ValueError), "which the server answers with HTTP 400"


@pytest.mark.parametrize("options", [{"steps": 3}, {"threshold": None}, {"convergence_threshold": 0.1}], ids=repr)
def test_auto_is_diffusion_where_only_diffusion_can(options: dict[str, Any]) -> None:
    assert resolve(options).mode is Mode.DIFFUSION


@pytest.mark.parametrize(
    "options", [{"block_length": 4}, {"threshold": 0.5}, {"threshold": None}, {"steps": 2}], ids=repr
)
def test_autoregression_has_no_blocks(options: dict[str, Any]) -> None:
    """Whether the request pins the mode or needs it: what it says of blocks is refused, not ignored."""
    name = next(iter(options))
    with pytest.raises(OptionError, match="without blocks") as refusal:
        resolve({"mode": "autoregressive", **options})
    assert refusal.value.field == f"{OPTIONS_FIELD}.{name}"
    with pytest.raises(OptionError, match="its custom_logit_processor"):
        resolve(options, needs=("custom_logit_processor",))


# --- BD3-LM ---


@pytest.mark.parametrize(
    ("options", "algorithm", "threshold", "steps"),
    [
        ({}, BlockAlgorithm.FIRST_HITTING, None, 8),
        ({"steps": 2}, BlockAlgorithm.FIRST_HITTING, None, 2),
        ({"threshold": None}, BlockAlgorithm.FIRST_HITTING, None, 8),
        ({"algorithm": "confidence"}, BlockAlgorithm.CONFIDENCE, None, 8),
        ({"algorithm": "threshold"}, BlockAlgorithm.THRESHOLD, 0.9, 8),
        ({"algorithm": "threshold", "threshold": 0.5, "steps": 3}, BlockAlgorithm.THRESHOLD, 0.5, 3),
        ({"algorithm": "threshold", "steps": 3}, BlockAlgorithm.THRESHOLD, 0.9, 3),
        ({"algorithm": "threshold", "threshold": None, "steps": 3}, BlockAlgorithm.THRESHOLD, None, 3),
    ],
)
def test_algorithms_of_bd3lm(options: dict[str, Any], algorithm: str, threshold: float | None, steps: int) -> None:
    plan = plan_of(options, family=BD3LM)
    (start,) = plan.permitted
    assert (start.mode, start.algorithm, start.threshold, start.steps) == (DIFFUSION, algorithm, threshold, steps)
    assert plan.stop_rule is StopRule.EOS


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"algorithm": "prob_conf"}, "algorithm"),
        ({"threshold": 0.9}, "threshold"),
        ({"algorithm": "confidence", "threshold": 0.9}, "threshold"),
        ({"block_length": 4}, "block_length"),
        ({"mode": "autoregressive"}, "mode"),
    ],
)
def test_what_bd3lm_has_not(options: dict[str, Any], field: str) -> None:
    with pytest.raises(OptionError) as refusal:
        resolve(options, family=BD3LM)
    assert refusal.value.field == f"{OPTIONS_FIELD}.{field}"
    check_message(refusal.value)


def test_stop_rules_are_the_familys() -> None:
    assert plan_of({"stop_rule": "upstream"}, family=BD3LM).stop_rule is StopRule.UPSTREAM
    assert plan_of({"stop_rule": "eos"}).stop_rule is StopRule.EOS
    with pytest.raises(OptionError, match="stop_rule"):
        resolve({"stop_rule": "upstream"})


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({"generation": {"block_length": 4}}, "generation.block_length"),
        ({"routing": {"widths": [4]}}, "routing.widths"),
    ],
)
def test_a_server_cannot_leave_the_grid_of_bd3lm(content: dict[str, Any], field: str) -> None:
    config = ServerConfig.model_validate(content)
    check_file(config, NEMOTRON_LABS_DIFFUSION, BLOCK_SIZE)
    with pytest.raises(ConfigError) as refusal:
        check_file(config, BD3LM, BLOCK_SIZE)
    assert refusal.value.field == field
