"""Noise in the draft adapter of an inflated checkpoint makes drafts worse and leaves the answers as they are.

All on the bundled model. Its training network decodes, in float32.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dlm_serve import cli
from dlm_serve.bundled import FOLDER as NANO
from dlm_serve.decoding import CausalCommit, ConcreteMode, Mode, ModeSettings
from dlm_serve.inflation import inflate, inflate_adapter
from dlm_serve.inflation.adapter import LARGEST_NOISE, Adapter
from dlm_serve.models.checkpoint import DRAFT_ADAPTER_FOLDER, Checkpoint
from dlm_serve.training.checkpoint import load_model
from dlm_serve.training.reference_decoder import Answer, decode
from dlm_serve.training.tasks import TASKS
from dlm_serve.training.tokenizer import EOS_ID, load_tokenizer, render_prompt

CONFIG = json.loads((NANO / "config.json").read_text())
WIDE = {**CONFIG, "hidden_size": 1024, "num_hidden_layers": 8, "vocab_size": 2600}
BLOCK = 32
LIMIT = 40
"""Tokens of an answer."""

Tensors = dict[str, torch.Tensor]


def adapter(out: Path, noise: float) -> Tensors:
    """Nano's adapter with this noise, in nano's own shape."""
    inflate_adapter(str(NANO), str(NANO / "config.json"), out, noise)
    return load_file(out / "adapter_model.safetensors")


def matrices(tensors: Tensors, name: str) -> torch.Tensor:
    """A or B of all layers, [layers, ...] float64."""
    return torch.stack([tensor for key, tensor in sorted(tensors.items()) if f"lora_{name}" in key]).double()


def answers(model: Path, mode: ConcreteMode, tasks: list[str]) -> list[Answer]:
    """Greedy answers of the model in a folder to one held-out question of each task."""
    tokenizer = load_tokenizer(NANO)
    questions = [next(TASKS[task].examples("heldout", 1, seed=0)).prompt for task in tasks]
    prompts = [tokenizer.encode(render_prompt([question]), add_special_tokens=False).ids for question in questions]
    length, threshold = (1, None) if mode is Mode.AUTOREGRESSIVE else (BLOCK, 0.0)
    options = CausalCommit().row_options(ModeSettings(mode, length, threshold, length), 0, [EOS_ID], 0)
    return decode(load_model(model), prompts, options, LIMIT)


def acceptance_length(found: list[Answer]) -> float:
    accepted = [count for answer in found for count in answer.accepted]
    return sum(accepted) / len(accepted)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shape four times as wide as nano, as a file."""
    path = tmp_path_factory.mktemp("wide") / "shape.json"
    path.write_text(json.dumps(WIDE))
    return path


# --- the adapter ---


def test_without_noise_the_adapter_is_the_small_model_s(tmp_path: Path) -> None:
    """Bit for bit."""
    given = load_file(NANO / DRAFT_ADAPTER_FOLDER / "adapter_model.safetensors")
    found = adapter(tmp_path / "out", 0)
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        assert torch.equal(found[name].view(torch.int16), tensor.view(torch.int16))


def test_noise_changes_b_alone_and_not_where_it_writes_the_constant_channel(tmp_path: Path) -> None:
    plain, noisy = (adapter(tmp_path / str(noise), noise) for noise in (0, 2))
    assert torch.equal(matrices(noisy, "A"), matrices(plain, "A"))
    changed = matrices(noisy, "B") != matrices(plain, "B")
    assert not changed[:, -1].any()
    assert changed[:, :-1].double().mean() > 0.99


@pytest.mark.parametrize("noise", [0.5, 2, 4, LARGEST_NOISE])
def test_noise_is_measured_in_standard_deviations_of_b(tmp_path: Path, noise: float) -> None:
    """And has one direction, whatever its size: within the rounding of bfloat16."""
    plain, unit, noisy = (matrices(adapter(tmp_path / str(size), size), "B") for size in (0, 1, noise))
    ratio = (noisy - plain).std(dim=(1, 2)) / plain.std(dim=(1, 2))
    torch.testing.assert_close(ratio, torch.full_like(ratio, noise), rtol=0.02, atol=0)
    rounding = 2**-8 * (noisy.abs() + noise * unit.abs())
    assert torch.all((noisy - plain - noise * (unit - plain)).abs() <= rounding)


def test_the_same_noise_is_the_same_file(tmp_path: Path) -> None:
    for out in ("one", "two"):
        adapter(tmp_path / out, 2)
    one, two = ((tmp_path / out / "adapter_model.safetensors").read_bytes() for out in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("noise", [0, 1, LARGEST_NOISE])
def test_the_bound_that_weights_stand_on_holds(tmp_path: Path, noise: float) -> None:
    """Of what drafts add to a layer, whatever the noise."""
    given = Adapter.load(NANO / DRAFT_ADAPTER_FOLDER)
    found = adapter(tmp_path / "out", noise)
    products = given.scale * matrices(found, "B") @ matrices(found, "A")
    for index, norm in enumerate(products.norm(dim=(1, 2)).tolist()):
        assert norm <= given.norm_bound(index)


# --- the checkpoint ---


def test_an_adapter_written_alone_is_that_of_a_whole_checkpoint(wide: Path, tmp_path: Path) -> None:
    """And a folder that the server's `lora.draft_adapter` takes."""
    whole, alone = tmp_path / "whole", tmp_path / "alone"
    for out, flags in ((whole, ()), (alone, ("--adapter-only",))):
        assert cli.main(["inflate", "--like", str(wide), "--draft-noise", "2", *flags, str(out)]) == 0
    assert {file.name for file in alone.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    for file in alone.iterdir():
        assert file.read_bytes() == (whole / DRAFT_ADAPTER_FOLDER / file.name).read_bytes()
    checkpoint = Checkpoint.find(str(whole))
    assert checkpoint is not None
    assert checkpoint.draft_adapter(str(alone)) == alone


def test_weights_suit_an_adapter_of_any_noise(wide: Path, tmp_path: Path) -> None:
    """They are the same for all."""
    plain, noisy = tmp_path / "plain", tmp_path / "noisy"
    inflate(str(NANO), str(wide), plain)
    inflate(str(NANO), str(wide), noisy, LARGEST_NOISE)
    files = [file.name for file in plain.glob("*.safetensors")]
    assert len(files) == WIDE["num_hidden_layers"] + 2
    for file in files:
        assert (plain / file).read_bytes() == (noisy / file).read_bytes()


# --- answers ---


def test_the_more_noise_the_fewer_drafts_are_accepted(tmp_path: Path) -> None:
    tasks = ["arithmetic", "reversing", "questions"]
    expected = [answer.ids for answer in answers(NANO, Mode.AUTOREGRESSIVE, tasks)]
    lengths = []
    for noise in (0, 2, 4):
        model = tmp_path / str(noise)
        shutil.copytree(NANO, model, ignore=shutil.ignore_patterns(DRAFT_ADAPTER_FOLDER))
        adapter(model / DRAFT_ADAPTER_FOLDER, noise)
        found = answers(model, Mode.SELF_SPECULATION, tasks)
        assert [answer.ids for answer in found] == expected
        lengths.append(acceptance_length(found))
    plain, some, much = lengths
    assert plain > 2 * some > 4 * much


def test_a_large_model_with_noise_gives_the_small_one_s_answers(wide: Path, tmp_path: Path) -> None:
    inflate(str(NANO), str(wide), tmp_path / "large", 2)
    [expected] = answers(NANO, Mode.SELF_SPECULATION, ["arithmetic"])
    [found] = answers(tmp_path / "large", Mode.SELF_SPECULATION, ["arithmetic"])
    assert found.ids == expected.ids
    assert found.nfe > expected.nfe
