"""Keep the plan of a step, and its row numbers on the device, for as long as the batch stays the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dlm_serve.decoding import Commit, DrawnRows, RequestState
from dlm_serve.scheduling.step_plan import StepPlan
from dlm_serve.sglang.protocols import ReqLike
from dlm_serve.sglang.requests import state_of


@dataclass(frozen=True)
class RowGroup:
    """The rows of a step that take the same forward."""

    numbers: tuple[int, ...]
    rows: torch.Tensor | None
    """`numbers` on the device, [N] int64; None if these are all rows."""
    states: list[RequestState]
    drawn: DrawnRows

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the rows of the group in a tensor with one row for each request of the batch."""
        return tensor if self.rows is None else tensor[self.rows]


@dataclass(frozen=True)
class PlannedStep:
    """A step's plan with its groups of rows; None where a group is empty."""

    plan: StepPlan
    decode: RowGroup | None
    block: RowGroup | None
    windows: RowGroup | None
    flush: RowGroup | None

    @classmethod
    def of(cls, reqs: Sequence[ReqLike], commit: Commit, device: str) -> PlannedStep:
        """Plan a step of SGLang's `reqs`."""
        states = [state_of(req) for req in reqs]
        plan = StepPlan.of(states, commit)

        def group(numbers: tuple[int, ...]) -> RowGroup | None:
            if not numbers:
                return None
            members = [states[i] for i in numbers]
            rows = None if len(numbers) == len(states) else to_device(numbers, device)
            return RowGroup(numbers, rows, members, drawn_rows(members, commit, device))

        return cls(
            plan, group(plan.decode_rows), group(plan.block_rows), group(plan.window_rows), group(plan.flush_rows)
        )


class StepPlanner:
    """Plans steps, and plans anew only when the batch has changed."""

    def __init__(self, commit: Commit, device: str) -> None:
        self._commit = commit
        self._device = device
        self._reqs: list[ReqLike] = []
        self._planned: PlannedStep | None = None

    def plan(self, reqs: list[ReqLike]) -> PlannedStep:
        """Return the plan of a step of SGLang's `reqs`."""
        if self._planned is None or self._reqs != reqs:
            self._reqs = list(reqs)
            self._planned = PlannedStep.of(reqs, self._commit, self._device)
        return self._planned

    def forget(self) -> None:
        """Plan the next step anew: the state of a request has changed."""
        self._planned = None


def drawn_rows(states: Sequence[RequestState], commit: Commit, device: str) -> DrawnRows:
    """Return which rows, one for each of `states`, are left to chance."""
    sampled = tuple(i for i, state in enumerate(states) if state.is_sampled)
    shuffled = tuple(i for i, state in enumerate(states) if commit.is_shuffled(state.current))
    return DrawnRows(to_device(sampled, device) if sampled else None, to_device(shuffled, device) if shuffled else None)


def to_device(numbers: Sequence[int], device: str) -> torch.Tensor:
    """Return `numbers` on the device as int64, without waiting for it."""
    host = torch.tensor(numbers, dtype=torch.int64, pin_memory=device == "cuda")
    return host.to(device, non_blocking=True)
