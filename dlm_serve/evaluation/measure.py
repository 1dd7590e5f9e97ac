"""Ask a running server questions and score its answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from statistics import fmean

from dlm_serve.client import MODES, Answer, Client
from dlm_serve.training.tasks import Example, Task


@dataclass(frozen=True)
class Setting:
    """One way to decode."""

    mode: str
    threshold: float | None = None
    """Only for diffusion; no threshold changes the answers of the other modes."""
    algorithm: str | None = None
    """Only for diffusion; None is the family's default."""

    @property
    def options(self) -> dict[str, object]:
        """Return the `custom_params.dlm` of a request."""
        given = {"mode": self.mode, "threshold": self.threshold, "algorithm": self.algorithm}
        return {name: value for name, value in given.items() if value is not None}

    def __str__(self) -> str:
        return self.mode if self.threshold is None else f"{self.mode} {self.threshold:g}"


def settings(modes: Iterable[str], thresholds: Iterable[float], algorithm: str | None = None) -> list[Setting]:
    """Return one setting for each of the modes, and for diffusion one for each threshold, by `algorithm`."""
    chosen, found = set(modes), []
    for mode in MODES:
        if mode == "diffusion" and mode in chosen:
            found += [Setting(mode, threshold, algorithm) for threshold in sorted(set(thresholds))]
        elif mode in chosen:
            found.append(Setting(mode))
    return found


@dataclass(frozen=True)
class Question:
    """A held-out example of a task, as the model is asked."""

    task: Task
    example: Example
    prompt_ids: tuple[int, ...]


@dataclass(frozen=True)
class Trial:
    """A question and an answer to it."""

    question: Question
    answer: Answer
    log_probabilities: tuple[float, ...]
    """Of the answer's tokens under the autoregressive model, in nats; none where the model cannot decode so."""

    @property
    def is_correct(self) -> bool:
        """Return whether the answer is correct."""
        return self.question.task.is_correct(self.question.example, self.answer.text)


def questions(client: Client, tasks: Iterable[Task], count: int, seed: int) -> list[Question]:
    """Return `count` held-out examples of each task, without duplicates."""
    found = []
    for task in tasks:
        for example in dict.fromkeys(task.examples("heldout", count, seed)):
            prompt_ids = client.tokenize([{"role": "user", "content": example.prompt}])
            found.append(Question(task, example, tuple(prompt_ids)))
    return found


def ask(
    client: Client, asked: Sequence[Question], setting: Setting, max_new_tokens: int, concurrency: int, *, scored: bool
) -> Iterator[Trial]:
    """Yield the trials of all questions in order, running at most `concurrency` at a time.

    If they are `scored`, they have log-probabilities, for which the model must have mode autoregressive.
    """

    def attempt(question: Question) -> Trial:
        answer = client.generate(question.prompt_ids, setting.options, max_new_tokens)
        scores = client.log_probabilities(question.prompt_ids, answer.token_ids) if scored else ()
        return Trial(question, answer, tuple(scores))

    with ThreadPoolExecutor(concurrency) as pool:
        yield from pool.map(attempt, asked)


@dataclass(frozen=True)
class Figures:
    """The scores of the answers to some questions."""

    answers: int
    accuracy: float
    """Share of correct answers; over several tasks, the mean of their shares."""
    forward_passes: float
    """Mean per answer, after the prefill."""
    tokens_per_forward: float | None
    """All tokens over all forward passes; None if there were none."""
    acceptance_length: float | None
    """Mean over the answers that have one."""
    cut: int
    """Answers that ended at the token limit."""

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> Figures:
        """Return the figures of `trials`, at least one."""
        all_of = [trial.answer.statistics for trial in trials]
        num_forwards = sum(one.nfe for one in all_of)
        num_tokens = sum(len(trial.answer.token_ids) for trial in trials)
        lengths = [one.acceptance_length for one in all_of if one.acceptance_length is not None]
        return cls(
            answers=len(trials),
            accuracy=fmean(fmean(one.is_correct for one in group) for group in by_task(trials).values()),
            forward_passes=num_forwards / len(trials),
            tokens_per_forward=num_tokens / num_forwards if num_forwards else None,
            acceptance_length=fmean(lengths) if lengths else None,
            cut=sum(trial.answer.is_cut for trial in trials),
        )


def by_task(trials: Iterable[Trial]) -> dict[str, list[Trial]]:
    """Return the trials of each task by its name."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.question.task.name, []).append(trial)
    return groups


def num_equal(trials: Sequence[Trial], reference: Sequence[Trial]) -> int:
    """Return how many answers have the same tokens as the reference's answer to the same question."""
    pairs = zip(trials, reference, strict=True)
    return sum(ours.answer.token_ids == theirs.answer.token_ids for ours, theirs in pairs)


def block_length_of(trials: Iterable[Trial]) -> int:
    """Return the longest block that any answer was decoded in."""
    return max(trial.answer.statistics.block_length for trial in trials)


def loss_by_position(trials: Iterable[Trial], block_length: int) -> list[float | None]:
    """Return the mean loss in nats of the tokens at each position inside a block, None where there is no token.

    A block begins with the token that the previous block or the prompt predicted, so blocks are counted from the
    answer's first token. The losses are those of the autoregressive model on the answers of any mode: where blocks
    join badly, their first tokens have a larger loss than autoregressive answers have there.
    """
    runs = (
        trial.log_probabilities[start : start + block_length]
        for trial in trials
        for start in range(0, len(trial.log_probabilities), block_length)
    )
    positions = ([-value for value in column if value is not None] for column in zip_longest(*runs))
    found = [fmean(losses) for losses in positions]
    return [*found, *[None] * (block_length - len(found))]
