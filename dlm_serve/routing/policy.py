"""What is asked how requests shall decode: by measurement (`measured`), by rules (`rules`), or pinned (`pinned`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dlm_serve.decoding import Choice, Evidence
from dlm_serve.routing.batch import Integers, RunningBatch
from dlm_serve.routing.costs import CostTable
from dlm_serve.routing.prefills import Interruptions
from dlm_serve.routing.trials import Passed


@dataclass(frozen=True)
class Outcome:
    """A policy's answer, and what it was based on, for whoever asks why."""

    kinds: Integers  # [F]
    """How each free request of the batch shall decode: a choice or AUTOREGRESSIVE."""
    first: Choice | None
    """How the requests that come next begin."""
    tokens_per_s: float | None = None
    """What was expected in the long run, prefills of new requests included; None where nothing was measured."""
    num_trial_steps: int = 0
    """Steps for which requests decode otherwise to find out what that yields; 0 if none does."""


class Policy(ABC):
    """What chooses: by measurement, or by rules."""

    name: ClassVar[str]

    def __init__(self, choices: Sequence[Choice]) -> None:
        """Choose among `choices` for blocks, beside autoregressive decoding."""
        self.choices = tuple(sorted(choices, key=lambda choice: choice.row_length))

    @abstractmethod
    def choose(self, batch: RunningBatch, table: CostTable, interruptions: Interruptions, passed: Passed) -> Outcome:
        """Return how the free requests of `batch` shall decode, where so much has `passed` since the last answer."""

    def enter(self, slots: Sequence[int]) -> None:  # noqa: B027  # not all keep tables
        """Note that a new request comes into each of `slots`."""

    def observe(self, slots: Sequence[int], blocks: Sequence[Evidence]) -> None:  # noqa: B027  # not all learn
        """Learn from finished blocks, each of the request in one of `slots`."""

    def expected_of_each(self, batch: RunningBatch, table: CostTable, interruptions: Interruptions) -> dict[str, float]:
        """Return the tokens per second that are expected of all requests of `batch` in each way, by its name.

        Ways that are not weighed with so many requests are left out; without measurements all are.
        """
        return {}

    def start_anew(self) -> None:  # noqa: B027  # not all learn
        """Forget what was learned: the model has other weights now."""
