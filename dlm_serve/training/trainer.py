"""Run a recipe phase by phase: reproducible from its seed, and resumable at any checkpoint as if never stopped."""

from __future__ import annotations

import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dlm_serve.errors import ConfigError
from dlm_serve.training.checkpoint import load_model, save_model
from dlm_serve.training.config import ConvertPhase, DraftPhase, Phase, TrainingConfig
from dlm_serve.training.corpus import Corpus
from dlm_serve.training.curves import plot_curves
from dlm_serve.training.evaluation import evaluate, measure_kl
from dlm_serve.training.layout import Mask
from dlm_serve.training.losses import Losses, autoregressive_loss, draft_loss, joint_loss
from dlm_serve.training.model import DiffusionModel
from dlm_serve.training.packing import Batch, Packing
from dlm_serve.training.tokenizer import load_tokenizer

Objective = Callable[[Batch, Mask, torch.Generator], Losses]

_MAX_GRADIENT_NORM = 1.0
_BATCHES_AHEAD = 4


@dataclass
class _Progress:
    """The progress of a run: what a checkpoint holds besides weights and optimizer."""

    phase: str
    step: int = 0
    minutes: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def train(config: TrainingConfig, *, resume: bool = False) -> None:
    """Run all phases of `config`; the model of each is exported to `output/<phase>/`. Raises ConfigError."""
    _check_output(config.output, resume=resume)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    corpus = Corpus.load(config.corpus / "train.npz")
    saved = torch.load(_checkpoint_path(config), map_location=device, weights_only=True) if resume else None
    progress = _Progress(**saved["progress"]) if saved else _Progress(next(iter(config.phases)))
    names = list(config.phases)
    if progress.phase not in names:
        raise ConfigError(
            "phases", names, f"the run stopped in {progress.phase}", "resume with the recipe it began with"
        )
    model = _start_model(config).to(device)
    for name in names[names.index(progress.phase) :]:
        if name != progress.phase:
            progress = _Progress(name, history=progress.history)
        run = _PhaseRun(config, name, model, corpus, progress)
        if saved:
            run.restore(saved)
            saved = None
        run.to_the_end()
    _conclude(config, names[-1], device)


def _start_model(config: TrainingConfig) -> DiffusionModel:
    if config.start_from is not None:
        return load_model(config.start_from, with_adapter=False)
    vocab_size = load_tokenizer(config.corpus / "tokenizer").get_vocab_size()
    model = DiffusionModel(config.model.to_config(vocab_size, config.block_size))
    model.initialise(config.seed)
    return model


class _PhaseRun:
    """One phase of a run."""

    def __init__(
        self, config: TrainingConfig, name: str, model: DiffusionModel, corpus: Corpus, progress: _Progress
    ) -> None:
        self._config, self._phase, self._model, self._progress = config, config.phases[name], model, progress
        self._device = model.inv_freq.device
        self._compiles = self._device.type == "cuda" if config.compile is None else config.compile
        self._seed = config.seed * 3 + ["pretrain", "convert", "draft"].index(name)
        self._packing = Packing(
            corpus,
            config.batch_size,
            config.sequence_length,
            config.blocks_per_row,
            config.block_size,
            self._seed,
        )
        self._objective, parameters = _objective(model, self._phase, self._seed)
        self._optimizer = torch.optim.AdamW(
            parameters, betas=(0.9, 0.95), weight_decay=0.1, fused=self._device.type == "cuda"
        )
        if self._compiles:
            for layer in model.encoder.layers:
                layer.compile(dynamic=False)

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue from a checkpoint of this phase."""
        self._model.load_state_dict(saved["model"])
        self._optimizer.load_state_dict(saved["optimizer"])

    def to_the_end(self) -> None:
        """Run the remaining steps."""
        progress, config = self._progress, self._config
        minutes_before, began = progress.minutes, time.monotonic()
        bar = tqdm(total=self._phase.steps, initial=progress.step, desc=progress.phase, mininterval=1)
        for batch in self._batches():
            losses = self._step(batch)
            progress.step += 1
            progress.minutes = minutes_before + (time.monotonic() - began) / 60
            if progress.step % config.log_every == 0:
                self._log(losses, bar)
            if progress.step % config.checkpoint_every == 0:
                self._save()
            if self._share_done() >= 1:
                break
        bar.close()
        self._save()

    def _batches(self) -> Iterator[Batch]:
        """Yield the batches of the remaining steps, packed by a thread while the device is busy."""

        def pack(step: int) -> Batch:
            batch = self._packing[step]
            return batch.pin() if self._device.type == "cuda" else batch

        with ThreadPoolExecutor(max_workers=1) as pool:
            steps = range(self._progress.step, self._phase.steps)
            ahead = deque(pool.submit(pack, step) for step in steps[:_BATCHES_AHEAD])
            for step in steps:
                batch = ahead.popleft().result()
                if step + _BATCHES_AHEAD in steps:
                    ahead.append(pool.submit(pack, step + _BATCHES_AHEAD))
                yield batch.to(self._device)

    def _step(self, batch: Batch) -> Losses:
        if type(self._phase) is Phase:
            batch = batch.clean()
        mask = batch.layout.block_mask() if self._compiles else batch.layout.dense_mask()
        generator = torch.Generator(self._device).manual_seed(self._seed * 1_000_003 + self._progress.step)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            losses = self._objective(batch, mask, generator)
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self._optimizer.zero_grad()
        torch.autograd.backward(losses["loss"])
        parameters = self._optimizer.param_groups[0]["params"]
        torch.nn.utils.clip_grad_norm_(parameters, _MAX_GRADIENT_NORM)
        self._optimizer.step()
        self._model.hold_constant_channel()
        return losses

    def _share_done(self) -> float:
        """Return how much of the phase is done, by steps or by time, whichever is more."""
        by_time = self._progress.minutes / self._phase.max_minutes if self._phase.max_minutes else 0.0
        return max(self._progress.step / self._phase.steps, by_time)

    def _learning_rate(self) -> float:
        phase = self._phase
        warm = min(1.0, (self._progress.step + 1) / phase.warmup_steps)
        decayed = min(1.0, (1 - self._share_done()) / phase.decay_share) if phase.decay_share else 1.0
        return phase.learning_rate * warm * max(decayed, 0.0)

    def _log(self, losses: Losses, bar: tqdm[Any]) -> None:
        values = {name: round(value.item(), 5) for name, value in losses.items()}
        if not all(value == value and abs(value) < float("inf") for value in values.values()):
            raise FloatingPointError(f"{self._progress.phase} step {self._progress.step}: {values}")
        entry = {
            "phase": self._progress.phase,
            "step": self._progress.step,
            "minutes": round(self._progress.minutes, 3),
        }
        self._progress.history.append({**entry, "learning_rate": self._learning_rate(), **values})
        bar.n = self._progress.step
        bar.set_postfix(values)

    def _save(self) -> None:
        """Save a checkpoint to resume from, the losses so far, and the model as it is."""
        path = _checkpoint_path(self._config)
        partial = path.with_suffix(".partial")
        content = {
            "progress": vars(self._progress),
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        torch.save(content, partial)
        partial.replace(path)
        (self._config.output / "history.json").write_text(json.dumps(self._progress.history, indent=0))
        plot_curves(self._progress.history, self._config.output / "curves.png")
        _export(self._config, self._model, self._progress.phase)


def _objective(model: DiffusionModel, phase: Phase, seed: int) -> tuple[Objective, list[torch.nn.Parameter]]:
    """Return what `phase` minimises, and over which parameters."""
    if isinstance(phase, DraftPhase):
        adapter = model.adapt(phase.rank, phase.alpha, seed)
        return lambda batch, mask, _: draft_loss(model, batch, mask), adapter
    parameters = list(model.parameters())
    if isinstance(phase, ConvertPhase):
        return lambda batch, mask, generator: joint_loss(model, batch, mask, phase, generator), parameters
    return lambda batch, mask, _: autoregressive_loss(model, batch, mask), parameters


def _conclude(config: TrainingConfig, last_phase: str, device: torch.device) -> None:
    """Write `output/report.json` about the exported model: how far it moved autoregressively, and its scores."""
    report: dict[str, Any] = {}
    model = load_model(config.output / last_phase).to(device)
    before = config.output / "pretrain" if config.pretrain else config.start_from
    if config.convert and before is not None:
        report["kl_nats_per_token"] = measure_kl(load_model(before).to(device), model, config)
    if config.evaluation is not None:
        report["evaluation"] = evaluate(model, config, config.evaluation)
    (config.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")


def _export(config: TrainingConfig, model: DiffusionModel, phase: str) -> None:
    folder = config.output / phase
    save_model(model, folder)
    for file in (config.corpus / "tokenizer").iterdir():
        shutil.copy(file, folder)


def _checkpoint_path(config: TrainingConfig) -> Path:
    return config.output / "checkpoint.pt"


def _check_output(output: Path, *, resume: bool) -> None:
    exists = (output / "checkpoint.pt").is_file()
    if resume and not exists:
        raise ConfigError("output", str(output), "has no checkpoint to resume from", "start without --resume")
    if exists and not resume:
        raise ConfigError("output", str(output), "holds another run", "give --resume, or another folder")
    output.mkdir(parents=True, exist_ok=True)
