"""What a checkpoint of BD3-LM says and leaves out, and how its modulation becomes constants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file
from torch.nn.functional import layer_norm, linear, silu

from dlm_serve.errors import CheckpointError
from dlm_serve.families import BD3LM
from dlm_serve.models.checkpoint import Checkpoint
from dlm_serve.models.modulation import fold_modulation

SOURCE = Path(__file__).parents[1] / "data" / "bd3lm" / "bd3lm-b4"

# The `config.json` of kuleshov-group/bd3lm-owt-block_size16, but for what only training reads.
RELEASE = {
    "architectures": ["BD3LM"],
    "model_type": "bd3lm",
    "block_size": 16,
    "cond_dim": 128,
    "hidden_dim": 768,
    "model_length": 1024,
    "n_blocks": 12,
    "n_heads": 12,
    "time_conditioning": False,
    "torch_dtype": "float32",
    "vocab_size": 50258,
}


def find(folder: Path | str) -> Checkpoint:
    found = Checkpoint.find(str(folder))
    assert found is not None
    return found


def written(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_release_is_recognised(tmp_path: Path) -> None:
    found = find(written(tmp_path, RELEASE))
    assert found.family is BD3LM
    assert (found.mask_token_id, found.eos_token_ids, found.block_size) == (50257, [50256], 16)
    assert (found.num_hidden_layers, found.hidden_size, found.head_dim, found.dtype) == (12, 768, 64, "float32")
    assert found.max_position_embeddings == 16 * 1024


@pytest.mark.parametrize("field", ["hidden_dim", "n_blocks", "n_heads", "vocab_size", "model_length", "block_size"])
def test_a_missing_field_is_reported(tmp_path: Path, field: str) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        find(written(tmp_path, {name: value for name, value in RELEASE.items() if name != field}))


@pytest.mark.parametrize("changes", [{"time_conditioning": True}, {"causal": True}, {"adaln": False}])
def test_other_variants_are_refused(tmp_path: Path, changes: dict[str, bool]) -> None:
    with pytest.raises(CheckpointError) as refusal:
        find(written(tmp_path, {**RELEASE, **changes}))
    assert refusal.value.field in changes


def test_tensor_names() -> None:
    find(SOURCE).check_weights()


def test_a_tokenizer_of_its_own_is_used() -> None:
    assert find(SOURCE).tokenizer() is None


def test_without_one_gpt2s_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(name: str, **_: Any) -> str:
        asked.append(name)
        return str(tmp_path)

    monkeypatch.setattr("dlm_serve.models.checkpoint.snapshot_download", fetch)
    assert find(written(tmp_path, RELEASE)).tokenizer() == tmp_path
    assert asked == ["openai-community/gpt2"]


def test_offline_the_tokenizer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(name: str, **_: Any) -> str:
        raise LocalEntryNotFoundError(f"{name} is not in the cache")

    monkeypatch.setattr("dlm_serve.models.checkpoint.snapshot_download", fetch)
    with pytest.raises(CheckpointError) as refusal:
        find(written(tmp_path, RELEASE)).tokenizer()
    assert (refusal.value.field, refusal.value.value) == ("tokenizer", "openai-community/gpt2")
    assert "--tokenizer-path" in refusal.value.remedy


def tensors_of_source() -> dict[str, torch.Tensor]:
    loaded = load_file(SOURCE / "model.safetensors")
    return {name.removeprefix("backbone."): tensor for name, tensor in loaded.items()}


def test_folding_does_not_depend_on_the_type_served() -> None:
    """Which is PyTorch's default while SGLang loads, and bfloat16 on a GPU."""
    expected = fold_modulation(tensors_of_source())
    torch.set_default_dtype(torch.bfloat16)
    try:
        folded = fold_modulation(tensors_of_source())
    finally:
        torch.set_default_dtype(torch.float32)
    assert folded.keys() == expected.keys()
    assert all(torch.equal(folded[name], expected[name]) for name in folded)


def test_folded_modulation_is_the_modulation() -> None:
    """The first half of a layer as the reference computes it, against folded weights."""
    tensors = tensors_of_source()
    folded = fold_modulation(tensors)
    assert not [name for name in folded if "adaLN" in name or "sigma_map" in name]

    condition = torch.cat([torch.ones(128), torch.zeros(128)])  # cosines and sines of noise level 0
    for name in ("sigma_map.mlp.0", "sigma_map.mlp.2"):
        condition = silu(linear(condition, tensors[f"{name}.weight"], tensors[f"{name}.bias"]))
    name = "blocks.1.adaLN_modulation"
    shift, scale, gate = linear(condition, tensors[f"{name}.weight"], tensors[f"{name}.bias"]).chunk(6)[:3]
    size = len(shift)
    x = torch.randn(5, size, generator=torch.Generator().manual_seed(0))

    normed = layer_norm(x, [size]) * tensors["blocks.1.norm1.weight"]
    wanted = gate * linear(normed * (1 + scale) + shift, tensors["blocks.1.attn_out.weight"])
    ours = layer_norm(x, [size], folded["blocks.1.norm1.weight"], folded["blocks.1.norm1.bias"])
    torch.testing.assert_close(linear(ours, folded["blocks.1.attn_out.weight"]), wanted)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as refusal:
        find(written(tmp_path, {**RELEASE, "quantization_config": {"quant_method": "fp8"}}))
    assert (refusal.value.field, refusal.value.value) == ("quantization_config", "fp8")
    assert "folded" in refusal.value.limit
