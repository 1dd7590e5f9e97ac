"""Run an evaluation and write its report."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dlm_serve.client import MODES, Client
from dlm_serve.evaluation import measure
from dlm_serve.evaluation.measure import Figures, Setting, Trial
from dlm_serve.training.tasks import Task

_SERVER_FIELDS = ("model_path", "dtype", "quantization", "device", "tp_size", "attention_backend")
"""What a report keeps of the server's settings."""


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    modes: tuple[str, ...]
    thresholds: tuple[float, ...]
    count: int
    """Questions per task."""
    seed: int
    """For choosing the questions."""
    max_new_tokens: int
    concurrency: int
    """Requests in flight at a time."""
    algorithm: str | None = None
    """Of diffusion; None is the family's default."""

    @property
    def settings(self) -> list[Setting]:
        """Return the settings that are compared."""
        return measure.settings(self.modes, self.thresholds, self.algorithm)


@dataclass(frozen=True)
class Result:
    """The scores of one setting."""

    mode: str
    threshold: float | None
    figures: Figures
    equal_to_autoregressive: int | None
    """Answers with the same tokens as the autoregressive ones; None if those were not measured."""
    tasks: dict[str, Figures]
    loss_by_position: list[float | None]
    """Nats, by position inside the block; see `measure.loss_by_position`. All None without mode autoregressive."""

    @property
    def setting(self) -> Setting:
        """Return the setting that was measured."""
        return Setting(self.mode, self.threshold)


@dataclass(frozen=True)
class Report:
    """An evaluation with everything needed to repeat it."""

    commit: str | None
    """Commit of dlm-serve, if git knows it; `-dirty` is appended if files differ from it."""
    versions: dict[str, str]
    server: dict[str, Any]
    plan: Plan
    block_length: int
    results: list[Result]

    def save(self, path: Path) -> None:
        """Write the report to `path` as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def evaluate(client: Client, tasks: Iterable[Task], plan: Plan, progress: Callable[[int, int], None]) -> Report:
    """Return the report of all questions in all settings.

    `progress` is called with the number of answers so far and in total. Raises ServerError.
    """
    about, scored = client.about(), MODES[0] in client.modes()
    asked = measure.questions(client, tasks, plan.count, plan.seed)
    num_answers, total = 0, len(asked) * len(plan.settings)
    trials: dict[Setting, list[Trial]] = {}
    for setting in plan.settings:
        trials[setting] = []
        for trial in measure.ask(client, asked, setting, plan.max_new_tokens, plan.concurrency, scored=scored):
            trials[setting].append(trial)
            num_answers += 1
            progress(num_answers, total)
    block_length = max(measure.block_length_of(found) for found in trials.values())
    return Report(
        commit=commit(),
        versions={"dlm-serve": version("dlm-serve"), "sglang": about["version"]},
        server={name: about.get(name) for name in _SERVER_FIELDS},
        plan=plan,
        block_length=block_length,
        results=[_result(setting, trials, block_length) for setting in trials],
    )


def _result(setting: Setting, trials: Mapping[Setting, list[Trial]], block_length: int) -> Result:
    found, reference = trials[setting], trials.get(Setting(MODES[0]))
    return Result(
        mode=setting.mode,
        threshold=setting.threshold,
        figures=Figures.of(found),
        equal_to_autoregressive=measure.num_equal(found, reference) if reference else None,
        tasks={name: Figures.of(group) for name, group in measure.by_task(found).items()},
        loss_by_position=measure.loss_by_position(found, block_length),
    )


def commit() -> str | None:
    """Return the commit of dlm-serve, `-dirty` appended if files differ; None if git does not track this file."""
    file = Path(__file__)

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=file.parent, check=True, capture_output=True, text=True).stdout

    try:
        git("ls-files", "--error-unmatch", file.name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").strip()
    except (OSError, subprocess.CalledProcessError):
        return None
