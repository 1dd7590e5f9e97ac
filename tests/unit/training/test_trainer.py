"""A run is repeatable, resumable as if never stopped, learns, and refuses what it cannot do before it starts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dlm_serve.errors import ConfigError
from dlm_serve.training import trainer
from dlm_serve.training.config import TrainingConfig
from dlm_serve.training.curves import plot_curves

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16}


def recipe(folder: Path, corpus_folder: Path, **changes: Any) -> TrainingConfig:
    """A recipe of a second or two, written to a file and read back."""
    phase = {"learning_rate": 5e-3, "warmup_steps": 2}
    content: dict[str, Any] = {
        "corpus": str(corpus_folder),
        "output": str(folder / "run"),
        "model": SHAPE,
        "sequence_length": 128,
        "blocks_per_row": 2,
        "batch_size": 4,
        "log_every": 1,
        "checkpoint_every": 4,
        "pretrain": {"steps": 6, **phase},
        "convert": {"steps": 6, **phase},
        "draft": {"steps": 6, "rank": 2, "alpha": 4.0, **phase},
    }
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**content, **changes}))
    return TrainingConfig.load(folder / "recipe.yaml")


def outcome(config: TrainingConfig) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """The exported weights, adapter included, and the losses."""
    tensors = {}
    for file in sorted((config.output / "draft").rglob("*.safetensors")):
        tensors.update(load_file(file))
    history = json.loads((config.output / "history.json").read_text())
    return tensors, [{name: value for name, value in entry.items() if name != "minutes"} for entry in history]


@pytest.fixture(scope="module", autouse=True)
def _without_curves() -> Iterator[None]:
    """Drawn at every checkpoint, the curves would take ten times as long as the steps; one test has them drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "plot_curves", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, corpus_folder: Path) -> TrainingConfig:
    config = recipe(tmp_path_factory.mktemp("uninterrupted"), corpus_folder)
    trainer.train(config)
    return config


def assert_same(config: TrainingConfig, other: TrainingConfig) -> None:
    (ours, our_history), (theirs, their_history) = outcome(config), outcome(other)
    assert our_history == their_history
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_same_seed_gives_the_same_model(uninterrupted: TrainingConfig, tmp_path: Path, corpus_folder: Path) -> None:
    again = recipe(tmp_path / "again", corpus_folder)
    trainer.train(again)
    assert_same(again, uninterrupted)


@pytest.mark.parametrize("killed_at", [5, 6, 10, 17])
def test_a_resumed_run_ends_as_if_never_stopped(
    killed_at: int,
    uninterrupted: TrainingConfig,
    tmp_path: Path,
    corpus_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = recipe(tmp_path, corpus_folder)
    steps = iter(range(killed_at))
    step = trainer._PhaseRun._step

    def step_or_die(self: trainer._PhaseRun, batch: Any) -> Any:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(trainer._PhaseRun, "_step", step_or_die)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(config)
    trainer.train(config, resume=True)
    assert_same(config, uninterrupted)


def test_losses_are_finite_and_fall(tmp_path: Path, corpus_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "plot_curves", plot_curves)
    phase = {"steps": 30, "learning_rate": 1e-2, "warmup_steps": 5}
    draft = {**phase, "rank": 4}
    convert = {**phase, "weight_by_mask_ratio": False}
    config = recipe(tmp_path, corpus_folder, checkpoint_every=1000, pretrain=phase, convert=convert, draft=draft)
    trainer.train(config)
    _, history = outcome(config)
    for name, loss in (("pretrain", "ar_loss"), ("convert", "dlm_loss"), ("draft", "draft_loss")):
        losses = torch.tensor([entry[loss] for entry in history if entry["phase"] == name])
        assert losses.isfinite().all()
        assert losses[-10:].mean() < 0.9 * losses[:5].mean(), name
    assert (config.output / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_says_what_came_of_it(tmp_path: Path, corpus_folder: Path) -> None:
    config = recipe(tmp_path, corpus_folder, evaluation={"examples_per_task": 1, "max_new_tokens": 8})
    trainer.train(config)
    report = json.loads((config.output / "report.json").read_text())
    assert report["kl_nats_per_token"] > 0
    modes = report["evaluation"]
    assert set(modes) == {"autoregressive", "diffusion", "self_speculation", "self_speculation without adapter"}
    assert modes["autoregressive"]["mean acceptance_length"] <= 1
    assert all(0 <= scores["mean exact_match"] <= 1 for scores in modes.values())


def test_conversion_can_start_from_a_checkpoint(
    uninterrupted: TrainingConfig, tmp_path: Path, corpus_folder: Path
) -> None:
    start = str(uninterrupted.output / "draft")
    config = recipe(tmp_path, corpus_folder, pretrain=None, draft=None, start_from=start)
    trainer.train(config)
    assert not (config.output / "convert" / "linear_spec_lora").exists()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"corpus": "nowhere"}, "corpus"),
        ({"pretrain": None, "convert": None, "draft": None}, "phases"),
        ({"pretrain": {"steps": 0, "learning_rate": 1e-3}}, "pretrain.steps"),
        ({"pretrain": {"steps": 5, "learning_rat": 1e-3}}, "pretrain"),
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"convert": {"steps": 5, "learning_rate": 1e-3, "ar_loss_weight": 0, "dlm_loss_weight": 0}}, "convert"),
        ({"convert": {"steps": 5, "learning_rate": 1e-3, "masking": {"form": "square"}}}, "convert.masking"),
        ({"model": {"num_attention_heads": 3, "num_key_value_heads": 2}}, "model.num_attention_heads"),
        ({"start_from": "nowhere"}, "start_from"),
    ],
)
def test_a_bad_recipe_is_refused_before_the_first_step(
    changes: dict[str, Any], field: str, tmp_path: Path, corpus_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer._PhaseRun, "to_the_end", lambda self: pytest.fail("it started"))
    with pytest.raises(ConfigError) as error:
        trainer.train(recipe(tmp_path, corpus_folder, **changes))
    assert field in error.value.field


def test_another_run_is_neither_overwritten_nor_invented(
    uninterrupted: TrainingConfig, tmp_path: Path, corpus_folder: Path
) -> None:
    with pytest.raises(ConfigError, match="another run"):
        trainer.train(uninterrupted)
    with pytest.raises(ConfigError, match="no checkpoint"):
        trainer.train(recipe(tmp_path, corpus_folder), resume=True)


def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        TrainingConfig.load(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(ConfigError, match="mapping"):
        TrainingConfig.load(tmp_path / "list.yaml")


def test_the_bundled_models_recipe_is_valid(
    tmp_path: Path, corpus_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").symlink_to(corpus_folder)
    config = TrainingConfig.load(Path(trainer.__file__).parent / "nano.yaml")
    assert list(config.phases) == ["pretrain", "convert", "draft"]
