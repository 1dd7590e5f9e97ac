"""The training network is the served one: it gives the reference's answers and reads and writes its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from dlm_serve.decoding import CausalCommit, ConcreteMode, Mode, ModeSettings, RowOptions
from dlm_serve.models.checkpoint import Checkpoint
from dlm_serve.training.checkpoint import load_model, save_model
from dlm_serve.training.layout import Layout
from dlm_serve.training.model import CONSTANT_CHANNEL, DiffusionModel
from dlm_serve.training.reference_decoder import decode

TESTS = Path(__file__).parent.parent.parent
WITH_ADAPTER = TESTS / "data" / "nld-trained-b32-lora"
MODES: dict[str, ConcreteMode] = {
    "ar": Mode.AUTOREGRESSIVE,
    "diffusion": Mode.DIFFUSION,
    "linear_spec": Mode.SELF_SPECULATION,
}
EVERY = 12
"""One in so many golden cases: the server's tests run them all."""

Case = dict[str, Any]


def golden(folder: Path) -> list[Case]:
    cases = json.loads((TESTS / "data" / "nld_cases.json").read_text())
    needs_adapter = folder == WITH_ADAPTER
    return [
        case
        for case in cases
        if case["variant"] == folder.name
        and (case["mode"] != "linear_spec" or (case["lora"] is not None) == needs_adapter)
        and "max_thinking_tokens" not in case["params"]
    ][::EVERY]


def settings_of(case: Case) -> RowOptions:
    params, mode = case["params"], MODES[case["mode"]]
    length = 1 if mode is Mode.AUTOREGRESSIVE else params["block_length"]
    threshold = params.get("threshold", 0.0 if mode is Mode.SELF_SPECULATION else None)
    stops = [] if params.get("eos_token_id") == -1 else [11]
    settings = ModeSettings(mode, length, threshold, length)
    return CausalCommit().row_options(settings, 0, stops, case.get("vocab_size", 0))


@pytest.mark.parametrize("folder", [WITH_ADAPTER, TESTS / "data" / "nld-trained-b8"], ids=lambda folder: folder.name)
def test_it_gives_the_answers_of_the_reference(folder: Path) -> None:
    model = load_model(folder)
    cases = golden(folder)
    assert {case["mode"] for case in cases} == set(MODES)
    for case in cases:
        limit = case["params"]["max_new_tokens"]
        [answer] = decode(model, [case["prompt_ids"]], settings_of(case), limit)
        assert answer.ids == case["output_ids"][:limit], case["id"]


def test_sequences_decode_together_as_they_do_alone() -> None:
    model = load_model(WITH_ADAPTER)
    for mode in MODES:
        case, *others = [case for case in golden(WITH_ADAPTER) if case["mode"] == mode]
        settings = settings_of(case)
        prompts = [each["prompt_ids"] for each in (case, *others)][:3]
        alone = [decode(model, [prompt], settings, 24)[0] for prompt in prompts]
        assert decode(model, prompts, settings, 24) == alone


def test_a_checkpoint_reads_back_and_is_one_that_we_serve(model: DiffusionModel, tmp_path: Path) -> None:
    model.adapt(rank=4, alpha=8.0)
    for o_proj in model.adapted():
        torch.nn.init.normal_(o_proj.lora_B)
    save_model(model, tmp_path)
    checkpoint = Checkpoint.find(str(tmp_path))
    assert checkpoint is not None
    checkpoint.check_weights()
    assert checkpoint.draft_adapter("auto") == tmp_path / "linear_spec_lora"
    restored = load_model(tmp_path).state_dict()
    assert restored.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(restored[name], tensor.bfloat16().float()), name


def test_the_adapter_is_one_that_peft_reads(model: DiffusionModel, tmp_path: Path) -> None:
    model.adapt(rank=4, alpha=8.0)
    save_model(model, tmp_path)
    config = LoraConfig.from_pretrained(str(tmp_path / "linear_spec_lora"))
    assert (config.r, config.lora_alpha, config.target_modules) == (4, 8, {"o_proj"})
    ours = load_file(tmp_path / "linear_spec_lora" / "adapter_model.safetensors")
    release = load_file(WITH_ADAPTER / "linear_spec_lora" / "adapter_model.safetensors")
    assert ours.keys() == release.keys()


def test_an_adapter_counts_only_where_tokens_draft(model: DiffusionModel) -> None:
    tokens = torch.randint(10, 400, (1, 12))
    position = torch.arange(12, dtype=torch.int32)[None]
    mask = Layout(0 * position, position, 0 * position - 1, position + 1).dense_mask()
    plain = model(tokens, position, mask)
    model.adapt(rank=4, alpha=8.0)
    for o_proj in model.adapted():
        torch.nn.init.normal_(o_proj.lora_B)
    drafting = position >= 6
    adapted = model(tokens, position, mask, drafting)
    assert torch.equal(adapted[:, :6], plain[:, :6])
    assert not torch.isclose(adapted[:, 6:], plain[:, 6:]).all(-1).any()
    with model.without_adapter():
        assert torch.equal(model(tokens, position, mask, drafting), plain)


def test_nothing_writes_the_constant_channel(model: DiffusionModel) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    model.hold_constant_channel()
    residuals: list[torch.Tensor] = []
    for layer in model.encoder.layers:
        layer.register_forward_hook(lambda _, __, output: residuals.append(output))
    position = torch.arange(8, dtype=torch.int32)[None]
    mask = Layout(0 * position, position, 0 * position - 1, position + 1).dense_mask()
    model(torch.arange(8)[None], position, mask)
    assert len(residuals) == 2
    for residual in residuals:
        assert torch.equal(residual[..., CONSTANT_CHANNEL], torch.ones(1, 8))
    assert model.encoder.norm.weight[CONSTANT_CHANNEL] == 1
