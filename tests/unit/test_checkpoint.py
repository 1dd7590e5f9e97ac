"""A checkpoint folder is read and checked before any process starts, and what is wrong with it is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from dlm_serve import bundled
from dlm_serve.errors import CheckpointError
from dlm_serve.models import checkpoint as checkpoint_module
from dlm_serve.models.checkpoint import DRAFT_ADAPTER_FOLDER, Checkpoint

SOURCE = Path(__file__).parents[1] / "data" / "nld-trained-b8"
WITH_ADAPTER = SOURCE.parent / "nld-trained-b32-lora"
CONFIG: dict[str, Any] = json.loads((SOURCE / "config.json").read_text())
EOS, VOCAB_SIZE = CONFIG["eos_token_id"], CONFIG["vocab_size"]


def write_config(folder: Path, **changes: Any) -> Path:
    """The config of a good checkpoint with `changes`; `...` leaves a field out."""
    content = {name: value for name, value in {**CONFIG, **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def find(folder: Path) -> Checkpoint:
    checkpoint = Checkpoint.find(str(folder))
    assert checkpoint is not None
    return checkpoint


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(SOURCE / "model.safetensors")
    return tensors


# --- config.json ---


def test_a_good_checkpoint_is_read() -> None:
    checkpoint = find(SOURCE)
    assert checkpoint.folder == SOURCE
    assert (checkpoint.block_size, checkpoint.mask_token_id, checkpoint.eos_token_ids) == (8, 100, [EOS])
    assert (checkpoint.vocab_size, checkpoint.num_hidden_layers, checkpoint.head_dim) == (320, 3, 32)
    assert checkpoint.dtype == "float32"
    checkpoint.check_weights()


@pytest.mark.parametrize(
    "field",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_parameters",
        "mask_token_id",
        "eos_token_id",
        "block_size",
    ],
)
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        Checkpoint.find(str(write_config(tmp_path, **{field: ...})))
    assert (refusal.value.field, refusal.value.value) == (field, "<missing>")
    assert refusal.value.remedy == f"add it to {tmp_path / 'config.json'}"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"mask_token_id": -1}, "mask_token_id"),
        ({"mask_token_id": VOCAB_SIZE}, "mask_token_id"),
        ({"mask_token_id": EOS}, "mask_token_id"),
        ({"eos_token_id": [3, 100]}, "mask_token_id"),
        ({"mask_token_id": None}, "mask_token_id"),
        ({"block_size": 0}, "block_size"),
        ({"block_size": 65}, "block_size"),
        ({"block_size": "wide"}, "block_size"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rope_parameters": None}, "rope_parameters"),
    ],
    ids=repr,
)
def test_a_wrong_field_is_named_with_its_value(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        Checkpoint.find(str(write_config(tmp_path, **changes)))
    assert refusal.value.field == field
    assert refusal.value.value == changes.get(field, CONFIG[field])
    assert str(tmp_path / "config.json") in refusal.value.remedy


@pytest.mark.parametrize("mask_token_id", [0, VOCAB_SIZE - 1])
def test_any_other_id_of_the_vocabulary_may_be_the_mask(tmp_path: Path, mask_token_id: int) -> None:
    assert find(write_config(tmp_path, mask_token_id=mask_token_id)).mask_token_id == mask_token_id


def test_several_ids_may_end_a_sequence(tmp_path: Path) -> None:
    assert find(write_config(tmp_path, eos_token_id=[3, 4])).eos_token_ids == [3, 4]


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({}, "float32"),
        ({"torch_dtype": ..., "dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": ...}, None),
    ],
    ids=["old-name", "new-name", "both", "neither"],
)
def test_the_dtype_has_two_names(tmp_path: Path, changes: dict[str, Any], dtype: str | None) -> None:
    assert find(write_config(tmp_path, **changes)).dtype == dtype


@pytest.mark.parametrize("architectures", [..., None, [], ["LlamaForCausalLM"]], ids=repr)
def test_another_architecture_is_none_of_ours(tmp_path: Path, architectures: Any) -> None:
    """Whatever else is wrong with it is not for us to say."""
    assert Checkpoint.find(str(write_config(tmp_path, architectures=architectures, block_size=0))) is None


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"architectures": ["NemotronLabsDiffusionVLModel"]},
        {"architectures": ["AnyVLModel"], "text_config": {"architectures": CONFIG["architectures"]}},
        {"architectures": ["SDARVLForConditionalGeneration"]},
    ],
    ids=["ours", "named-alike", "text-model-is-ours", "released-otherwise"],
)
def test_a_model_that_sees_images_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError) as refusal:
        Checkpoint.find(str(write_config(tmp_path, vision_config={"model_type": "pixtral"}, **changes)))
    assert refusal.value.field == "vision_config"
    assert "images are not supported" in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    "architectures", [["Qwen2VLForConditionalGeneration"], ["PixtralForConditionalGeneration"], []]
)
def test_another_model_that_sees_images_is_left_to_sglang(tmp_path: Path, architectures: list[str]) -> None:
    folder = write_config(tmp_path, vision_config={}, architectures=architectures)
    assert Checkpoint.find(str(folder)) is None


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"7", b"\xff\xfe"], ids=repr)
def test_an_unreadable_config_is_none_of_ours(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    assert Checkpoint.find(str(tmp_path)) is None


def test_a_hub_id_is_resolved_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def download(model_id: str, filename: str, revision: str | None) -> str:
        asked.append((model_id, revision))
        return str(write_config(tmp_path) / filename)

    def download_all(model_id: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((model_id, revision))
        assert "*.json" in allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(checkpoint_module, "hf_hub_download", download)
    monkeypatch.setattr(checkpoint_module, "snapshot_download", download_all)
    checkpoint = Checkpoint.find("someone/some-model", "v2")
    assert checkpoint is not None
    assert checkpoint.folder == tmp_path
    assert asked == [("someone/some-model", "v2")] * 2


def test_a_hub_id_that_is_not_there_is_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(checkpoint_module, "hf_hub_download", download)
    assert Checkpoint.find("someone/some-model") is None


# --- Weights ---


def refusal_of_weights(folder: Path, **changes: Any) -> CheckpointError:
    checkpoint = find(write_config(folder, **changes))
    with pytest.raises(CheckpointError) as refusal:
        checkpoint.check_weights()
    assert refusal.value.field == "weights"
    return refusal.value


def test_no_weights(tmp_path: Path) -> None:
    refusal = refusal_of_weights(tmp_path)
    assert refusal.value == str(tmp_path)
    assert "no *.safetensors" in refusal.limit


@pytest.mark.parametrize(
    "kept", [0, 4, 100, 0.5, -1], ids=["empty", "length-only", "in-header", "half", "one-byte-less"]
)
def test_a_truncated_file_is_named(tmp_path: Path, kept: float) -> None:
    content = (SOURCE / "model.safetensors").read_bytes()
    kept_bytes = int(kept * len(content)) if isinstance(kept, float) else kept
    (tmp_path / "model.safetensors").write_bytes(content[:kept_bytes])
    refusal = refusal_of_weights(tmp_path)
    assert refusal.value == str(tmp_path / "model.safetensors")
    assert "download it again" in refusal.remedy


def test_missing_tensors_are_named(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    del weights["encoder.norm.weight"], weights["encoder.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    limit = refusal_of_weights(tmp_path).limit
    assert limit == "2 tensors missing: encoder.layers.1.mlp.up_proj.weight, encoder.norm.weight"


def test_left_over_tensors_are_named(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    weights["encoder.layers.3.input_layernorm.weight"] = torch.ones(2)
    save_file(weights, tmp_path / "model.safetensors")
    limit = refusal_of_weights(tmp_path).limit
    assert limit == "1 tensors left over: encoder.layers.3.input_layernorm.weight"


def test_a_long_list_of_tensors_is_cut(tmp_path: Path) -> None:
    """A config with one layer more than the file: nine tensors, eight of them named."""
    shutil.copyfile(SOURCE / "model.safetensors", tmp_path / "model.safetensors")
    limit = refusal_of_weights(tmp_path, num_hidden_layers=4).limit
    assert limit.startswith("9 tensors missing: ")
    assert limit.count("encoder.layers.3.") == 8
    assert limit.endswith(", ...")


def test_weights_may_be_spread_over_files(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    names = sorted(weights)
    for part, chosen in enumerate((names[:9], names[9:])):
        save_file({name: weights[name] for name in chosen}, tmp_path / f"model-{part + 1}-of-2.safetensors")
    find(write_config(tmp_path)).check_weights()
    (tmp_path / "model-2-of-2.safetensors").unlink()
    assert f"{len(names) - 9} tensors missing" in refusal_of_weights(tmp_path).limit


QUANTIZED: dict[str, Any] = {"quantization_config": {"quant_method": "fp8"}}


def test_the_modules_of_a_quantised_checkpoint_are_compared(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Which tensors stand for a weight depends on the method; see `test_quantized_models.py`."""
    weights["encoder.layers.0.self_attn.q_proj.weight_scale"] = torch.ones(1)
    weights["encoder.layers.0.self_attn.k_proj.k_scale"] = torch.ones(1)
    weights["encoder.layers.0.self_attn.v_scale"] = torch.ones(1)
    save_file(weights, tmp_path / "model.safetensors")
    find(write_config(tmp_path, **QUANTIZED)).check_weights()


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"encoder.norm.weight": None}, "1 modules missing: encoder.norm"),
        ({"encoder.layers.3.mlp.up_proj.qweight": torch.ones(1)}, "1 modules left over: encoder.layers.3.mlp.up_proj"),
    ],
    ids=["missing", "left over"],
)
def test_modules_of_a_quantised_checkpoint_are_named(
    tmp_path: Path, weights: dict[str, torch.Tensor], changes: dict[str, torch.Tensor | None], limit: str
) -> None:
    changed = {name: tensor for name, tensor in {**weights, **changes}.items() if tensor is not None}
    save_file(changed, tmp_path / "model.safetensors")
    assert refusal_of_weights(tmp_path, **QUANTIZED).limit == limit


@pytest.mark.parametrize(
    ("changes", "files", "quantization"),
    [
        ({}, [], None),
        ({"quantization_config": None}, [], None),
        (QUANTIZED, [], "fp8"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, [], "compressed-tensors"),
        ({}, ["hf_quant_config.json"], "hf_quant_config.json"),
        ({}, ["quantize_config.json"], "quantize_config.json"),
    ],
    ids=repr,
)
def test_a_quantised_checkpoint_says_so(
    tmp_path: Path, changes: dict[str, Any], files: list[str], quantization: str | None
) -> None:
    for file in files:
        (tmp_path / file).write_text("{}")
    assert find(write_config(tmp_path, **changes)).quantization == quantization


# --- Sampling defaults ---


@pytest.mark.parametrize(
    ("content", "defaults"),
    [
        (None, {"temperature": 0.0}),
        ({}, {"temperature": 0.0}),
        ({"temperature": None, "eos_token_id": 11}, {"temperature": 0.0}),
        ({"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7, "top_p": 0.9}),
        ({"top_k": 20, "min_p": 0.1}, {"temperature": 0.0, "top_k": 20, "min_p": 0.1}),
        ({"repetition_penalty": 1.05}, {"temperature": 0.0}),
    ],
    ids=["no-file", "empty", "null", "sampled", "filters", "penalty"],
)
def test_decoding_is_greedy_unless_the_checkpoint_says_otherwise(
    tmp_path: Path, content: dict[str, Any] | None, defaults: dict[str, float]
) -> None:
    if content is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert find(write_config(tmp_path)).generation_defaults() == defaults


# --- The draft adapter ---


def test_auto_finds_the_adapter_beside_the_weights() -> None:
    assert find(WITH_ADAPTER).draft_adapter("auto") == WITH_ADAPTER / DRAFT_ADAPTER_FOLDER
    assert find(SOURCE).draft_adapter("auto") is None


def test_none_is_no_adapter() -> None:
    assert find(WITH_ADAPTER).draft_adapter("none") is None


def test_a_folder_is_taken_where_it_is_one() -> None:
    adapter = WITH_ADAPTER / DRAFT_ADAPTER_FOLDER
    assert find(SOURCE).draft_adapter(str(adapter)) == adapter


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    for choice in (str(tmp_path), str(tmp_path / "absent")):
        with pytest.raises(CheckpointError) as refusal:
            find(SOURCE).draft_adapter(choice)
        assert (refusal.value.field, refusal.value.value) == ("lora.draft_adapter", choice)


def test_the_bundled_checkpoint_is_complete() -> None:
    """Its adapter lies in a folder of its own, so its tensors do not count as left over."""
    checkpoint = find(Path(bundled.expand("nano")))
    checkpoint.check_weights()
    assert checkpoint.draft_adapter("auto") == bundled.FOLDER / DRAFT_ADAPTER_FOLDER
    assert sum(file.stat().st_size for file in bundled.FOLDER.rglob("*") if file.is_file()) <= 16e6


def test_the_name_of_the_bundled_model_gives_way_to_a_model_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").mkdir()
    assert bundled.expand("nano") == str(bundled.FOLDER)
    (tmp_path / "nano" / "config.json").write_text("{}")
    assert bundled.expand("nano") == "nano"
    assert bundled.expand("nano/draft") == "nano/draft"
