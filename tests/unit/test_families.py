"""Each family is recognised from the `config.json` of its releases, and its description is complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from dlm_serve.decoding import DecodePlan, Mode, ModeSettings, PromptMask, StopRule
from dlm_serve.errors import CheckpointError, ConfigError, OptionError
from dlm_serve.families import EFFICIENT_DLM, FAMILIES, NEMOTRON_LABS_DIFFUSION, SDLM, Family, family_of
from dlm_serve.models.checkpoint import Checkpoint
from dlm_serve.options import resolve as resolving
from dlm_serve.options.file_rules import check_file, commit_of
from dlm_serve.options.needs import Need
from dlm_serve.options.request import RequestOptions
from dlm_serve.options.server_file import GenerationConfig, RoutingConfig, ServerConfig

DATA = Path(__file__).parents[1] / "data"
CHECKPOINTS = {
    "nld-trained-b8": NEMOTRON_LABS_DIFFUSION,
    "efficient_dlm/edlm-b8": EFFICIENT_DLM,
    "efficient_dlm/edlm-b32": EFFICIENT_DLM,
    "sdlm/sdlm-d4-tied": SDLM,
    "sdlm/sdlm-d8-untied": SDLM,
}
CONCRETE = {Mode.AUTOREGRESSIVE, Mode.DIFFUSION, Mode.SELF_SPECULATION}

each_checkpoint = pytest.mark.parametrize("name", CHECKPOINTS)
each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def config_of(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((DATA / name / "config.json").read_text())
    return config


@each_checkpoint
def test_a_checkpoint_is_recognised(name: str) -> None:
    assert family_of(config_of(name)) is CHECKPOINTS[name]


@each_checkpoint
def test_its_tensors_are_those_described(name: str) -> None:
    checkpoint = Checkpoint.find(str(DATA / name))
    assert checkpoint is not None
    with safe_open(DATA / name / "model.safetensors", framework="pt") as tensors:
        left_out = set(checkpoint.family.tensors.untied) if checkpoint.tie_word_embeddings else set()
        assert set(checkpoint.family.tensors.names(checkpoint.num_hidden_layers)) - left_out == set(tensors.keys())


@each_family
def test_a_mode_is_there_or_refused_with_a_reason(family: Family) -> None:
    assert set(family.modes) | set(family.refusals) == CONCRETE
    assert not set(family.modes) & set(family.refusals)
    assert family.auto in family.modes


@each_family
def test_names_are_unique(family: Family) -> None:
    for field in ("name", "architecture"):
        assert [getattr(other, field) for other in FAMILIES].count(getattr(family, field)) == 1


def test_renaming_takes_the_beginning_of_a_name_alone() -> None:
    rename = EFFICIENT_DLM.tensors.rename
    assert rename("encoder.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
    assert rename("diffusion_head.weight") == "lm_head.weight"
    assert rename("diffusion_head") == "lm_head"
    assert rename("other.encoder.weight") == "other.encoder.weight"


@each_family
def test_renaming_is_undone(family: Family) -> None:
    names = family.tensors.names(2)
    assert [family.tensors.original(family.tensors.rename(name)) for name in names] == names


@pytest.mark.parametrize(
    ("pattern", "renamed"),
    [
        ("encoder.layers.0", "model.layers.0"),
        ("diffusion_head", "lm_head"),
        ("encoder", "model"),
        ("encoder.layers.0.self_attn*", "model.layers.0.self_attn*"),
        ("*diffusion_head*", "*lm_head*"),
        (r"re:encoder\.layers\.0\.", r"re:model\.layers\.0\."),
        (r"re:.*\bencoder\b.*", r"re:.*\bmodel\b.*"),
        (r"-:^diffusion_head$", r"-:^lm_head$"),
        ("re:(encoder.layers.0|diffusion_head)", "re:(model.layers.0|lm_head)"),
        ("re:.*self_attn.*", "re:.*self_attn.*"),
        ("encoders.0", "encoders.0"),
        ("my_encoder.0", "my_encoder.0"),
    ],
)
def test_patterns_of_names_are_renamed_word_by_word(pattern: str, renamed: str) -> None:
    assert EFFICIENT_DLM.tensors.rename_pattern(pattern) == renamed
    assert SDLM.tensors.rename_pattern(pattern) == pattern


# --- Efficient-DLM ---


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({}, {"rope_theta": 1000000.0, "rope_type": "default"}),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0},
        ),
        ({"rope_parameters": {"rope_theta": 1e4}}, {"rope_theta": 1e4}),
    ],
    ids=["old", "old-scaled", "new"],
)
def test_the_rotary_embedding_has_two_forms(changes: dict[str, Any], rope: dict[str, Any]) -> None:
    config = {**config_of("efficient_dlm/edlm-b8"), **changes}
    assert Checkpoint.read(EFFICIENT_DLM, config, DATA).rope_parameters == rope


@pytest.mark.parametrize(
    ("given", "ids"), [({}, []), ({"eos_token_id": None}, []), ({"eos_token_id": 5}, [5])], ids=str
)
def test_its_config_need_not_name_an_end(given: dict[str, Any], ids: list[int]) -> None:
    config = {**config_of("efficient_dlm/edlm-b8"), **given}
    assert Checkpoint.read(EFFICIENT_DLM, config, DATA).eos_token_ids == ids


def resolve(options: dict[str, Any], needs: tuple[Need, ...] = ()) -> DecodePlan:
    return resolving.resolve(RequestOptions.parse(options), ServerConfig(), EFFICIENT_DLM, 32, needs)


def test_auto_is_what_the_family_has() -> None:
    assert resolve({}).permitted[0].mode is Mode.DIFFUSION
    assert resolve({"shift_logits": False}) == resolve({})


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"mode": "autoregressive"}, "mode"),
        ({"mode": "self_speculation"}, "mode"),
        ({"shift_logits": True}, "shift_logits"),
        ({"shift_logits": "false"}, "shift_logits"),
        ({"algorithm": "threshold"}, "algorithm"),
    ],
    ids=str,
)
def test_what_it_has_not_is_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(OptionError) as refusal:
        resolve(options)
    assert (refusal.value.field, refusal.value.value) == (f"custom_params.dlm.{field}", options[field])


def test_the_algorithm_that_a_threshold_needs() -> None:
    found = {family.name: family.threshold_algorithm for family in FAMILIES}
    assert found.pop("bd3lm") == "threshold"
    assert set(found.values()) == {None}


def test_a_stop_rule_goes_with_every_mode() -> None:
    options = RequestOptions.parse({"mode": "autoregressive", "stop_rule": "eos"})
    assert resolving.resolve(options, ServerConfig(), SDLM, 4, ()).stop_rule is StopRule.EOS


def test_what_needs_autoregression_is_refused_by_its_name() -> None:
    with pytest.raises(OptionError) as refusal:
        resolve({}, needs=(Need("regex", "regex"),))
    assert refusal.value.field == "regex"
    assert EFFICIENT_DLM.refusals[Mode.AUTOREGRESSIVE] in refusal.value.limit


@pytest.mark.parametrize(
    ("file", "field"),
    [
        ({"generation": {"mode": "autoregressive"}}, "generation.mode"),
        ({"generation": {"prefill": "causal"}}, "generation.prefill"),
        ({"generation": {"draft_threshold": 0.5}}, "generation.draft_threshold"),
        ({"lora": {"draft_adapter": "adapter"}}, "lora.draft_adapter"),
    ],
    ids=str,
)
def test_a_server_file_for_another_family_is_refused(file: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        check_file(ServerConfig.model_validate(file), EFFICIENT_DLM, 8)
    assert refusal.value.field == field


def test_an_adapter_that_nothing_drafts_with_is_not_looked_for(tmp_path: Path) -> None:
    folder = tmp_path / "linear_spec_lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    for family, found in ((NEMOTRON_LABS_DIFFUSION, folder), (EFFICIENT_DLM, None)):
        assert Checkpoint.model_construct(family=family, folder=tmp_path).draft_adapter("auto") == found


@pytest.mark.parametrize(
    ("mask", "unit", "is_whole"),
    [(None, 1, True), (PromptMask.BIDIRECTIONAL, 1, True), (PromptMask.BLOCK_CAUSAL, 8, False)],
)
def test_the_server_file_chooses_how_prompts_are_encoded(mask: PromptMask | None, unit: int, is_whole: bool) -> None:
    found = commit_of(ServerConfig(generation=GenerationConfig(prefill=mask)), EFFICIENT_DLM).prompt_mask
    assert found is (mask or PromptMask.BIDIRECTIONAL)
    assert (found.shared_unit(8), found.is_whole) == (unit, is_whole)


# --- SDLM ---


def sdlm_plan(options: dict[str, Any], block_size: int = 4, widths: tuple[int, ...] = (4, 8, 16, 32)) -> ModeSettings:
    config = ServerConfig(routing=RoutingConfig(widths=widths))
    return resolving.resolve(RequestOptions.parse(options), config, SDLM, block_size, ()).permitted[0]


@pytest.mark.parametrize("mark", SDLM.marks)
def test_a_plain_qwen_is_left_to_sglang(mark: str) -> None:
    config = config_of("sdlm/sdlm-d4-tied")
    del config[mark]
    assert family_of(config) is None


def test_causal_windows_are_refused() -> None:
    with pytest.raises(CheckpointError) as refusal:
        Checkpoint.read(SDLM, {**config_of("sdlm/sdlm-d4-tied"), "causal_attn": True}, DATA)
    assert refusal.value.field == "causal_attn"


@pytest.mark.parametrize(
    ("options", "algorithm", "block_length", "threshold"),
    [
        ({}, "prob_conf", 4, 0.9),
        ({"block_length": 8, "threshold": 0.82}, "prob_conf", 8, 0.82),
        ({"algorithm": "entropy_conf"}, "entropy_conf", 4, 0.9),
        ({"algorithm": "self_speculative"}, "self_speculative", 4, None),
    ],
    ids=str,
)
def test_windows(options: dict[str, Any], algorithm: str, block_length: int, threshold: float | None) -> None:
    plan = sdlm_plan(options)
    assert (plan.mode, plan.algorithm) == (Mode.DIFFUSION, algorithm)
    assert (plan.block_length, plan.threshold) == (block_length, threshold)


@pytest.mark.parametrize(
    ("block_size", "widths", "longest"), [(4, (32,), 8), (8, (4, 32), 16), (8, (16, 8), 8), (8, (4,), 2)]
)
def test_the_longest_window(block_size: int, widths: tuple[int, ...], longest: int) -> None:
    """Twice the trained one, as long as two fit into a row."""
    assert sdlm_plan({"block_length": longest}, block_size, widths).block_length == longest
    assert sdlm_plan({}, block_size, widths).block_length == min(block_size, longest)
    with pytest.raises(OptionError) as refusal:
        sdlm_plan({"block_length": longest + 1}, block_size, widths)
    assert f"at most {longest}" in refusal.value.limit


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"mode": "self_speculation"}, "mode"),
        ({"threshold": None}, "threshold"),
        ({"steps": 2}, "steps"),
        ({"convergence_threshold": 0.1}, "convergence_threshold"),
        ({"algorithm": "self_speculative", "threshold": 0.5}, "threshold"),
    ],
    ids=str,
)
def test_what_windows_have_not_is_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(OptionError) as refusal:
        sdlm_plan(options)
    assert (refusal.value.field, refusal.value.value) == (f"custom_params.dlm.{field}", options[field])


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({"generation": {"mode": "self_speculation"}}, "generation.mode"),
        ({"generation": {"threshold": None}}, "generation.threshold"),
        ({"generation": {"steps": 2}}, "generation.steps"),
        ({"generation": {"convergence_threshold": 0.5}}, "generation.convergence_threshold"),
        ({"generation": {"block_length": 9}}, "generation.block_length"),
        ({"routing": {"widths": [1]}}, "routing.widths"),
    ],
    ids=str,
)
def test_a_server_file_that_windows_cannot_follow(content: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        check_file(ServerConfig.model_validate(content), SDLM, 4)
    assert refusal.value.field == field
