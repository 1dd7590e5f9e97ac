"""Keep the plan of a step, and its row numbers on the device, for as long as the batch stays the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from dlm_serve.decoding import Commit, RequestState, RowOptions, Rows
from dlm_serve.routing.costs import CostTable, StepShape
from dlm_serve.scheduling.step_plan import StepPlan
from dlm_serve.sglang.engine.logit_rows import LogitRows
from dlm_serve.sglang.engine.requests import row_options_of, state_of
from dlm_serve.sglang.engine.to_device import to_device
from dlm_serve.sglang.protocols import ReqLike


@dataclass(frozen=True)
class RowGroup:
    """The rows of a step that take the same forward."""

    numbers: tuple[int, ...]
    rows: torch.Tensor | None
    """`numbers` on the device, [N] int64; None if these are all rows."""
    states: list[RequestState]
    logit_rows: list[LogitRows] = field(default_factory=list)
    """Those of them whose requests ask something of their logits."""

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the rows of the group in a tensor with one row for each request of the batch."""
        return tensor if self.rows is None else tensor[self.rows]

    def in_batch(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the positions [N] in the batch of the `rows` [N] of the group."""
        return rows if self.rows is None else self.rows[rows]


@dataclass(frozen=True)
class Offer:
    """Settings for the next blocks of some rows, for those that stand at the start of one when the step begins."""

    rows: torch.Tensor  # [N] int64, positions in the batch
    settings: Rows  # N rows


@dataclass(frozen=True)
class PlannedStep:
    """A step's plan with its groups of rows; None where a group is empty."""

    plan: StepPlan
    shape: StepShape
    """What its forwards are over, but for the context."""
    offer: Offer | None
    decode: RowGroup | None
    block: RowGroup | None
    windows: RowGroup | None
    history: RowGroup | None
    """The rows whose blocks are kept as the step leaves them."""

    @classmethod
    def of(
        cls, reqs: Sequence[ReqLike], commit: Commit, costs: CostTable, device: str, offer: Offer | None = None
    ) -> PlannedStep:
        """Plan a step of SGLang's `reqs`."""
        states = [state_of(req) for req in reqs]
        plan = StepPlan.of(states, commit, costs)

        def group(numbers: tuple[int, ...], width: int | None) -> RowGroup | None:
            """Return the rows with these numbers, whose forward has `width` columns; None is no forward of theirs."""
            if not numbers:
                return None
            rows = None if len(numbers) == len(states) else to_device(numbers, device)
            logit_rows = [] if width is None else LogitRows.of([reqs[i] for i in numbers], width, device)
            return RowGroup(numbers, rows, [states[i] for i in numbers], logit_rows)

        decode, block, windows = plan.decode_rows, plan.block_rows, plan.window_rows
        kept = tuple(i for i, state in enumerate(states) if state.history is not None)
        groups = (group(decode, 1), group(block, plan.width), group(windows, None), group(kept, None))
        shape = StepShape(num_decode=len(plan.decode_rows), num_blocks=len(plan.block_rows), width=plan.width)
        return cls(plan, shape, offer, *groups)


class StepPlanner:
    """Plans steps, and plans anew only when the batch has changed or requests go on in another mode."""

    def __init__(self, commit: Commit, costs: CostTable, row_width: int, device: str) -> None:
        """Plan by `costs` until told of others; `row_width` is the number of tokens of a row in the table."""
        self.costs = costs
        self.num_steps = 0
        """Steps planned so far."""
        self._commit = commit
        self._row_width = row_width
        self._device = device
        self._reqs: list[ReqLike] = []
        self._planned: PlannedStep | None = None
        self._switching: list[ReqLike] = []

    def plan(self, reqs: list[ReqLike]) -> PlannedStep:
        """Return the plan of the next step, which is over SGLang's `reqs`."""
        offer = self._offer(reqs) if self._switching else None
        planned = self._planned
        if planned is None or self._reqs != reqs:
            self._reqs = list(reqs)
            planned = self._planned = PlannedStep.of(reqs, self._commit, self.costs, self._device, offer)
        if offer is not None or planned.offer is not None:
            self._planned = None  # an offer is for one step
        self.num_steps += 1
        return planned

    def begin(self, reqs: Sequence[ReqLike]) -> None:
        """Note that an EXTEND call of `reqs` runs: their blocks begin at the next step."""
        for req in reqs:
            state_of(req).begin(self.num_steps)
        self.forget()

    def switch(self, reqs: Sequence[ReqLike]) -> None:
        """Let `reqs`, which want other settings, go on with them as soon as a block of theirs begins."""
        self._switching = list({id(req): req for req in (*self._switching, *reqs)}.values())

    def forget(self) -> None:
        """Plan the next step anew: the state of a request, or what forwards cost, has changed."""
        self._planned = None

    def _offer(self, reqs: Sequence[ReqLike]) -> Offer | None:
        """Return the settings to offer to rows of the next step, and plan it anew: what rows take has changed."""
        position = {id(req): i for i, req in enumerate(reqs)}
        offered: list[tuple[int, RowOptions]] = []
        for req in self._switching:
            state = state_of(req)
            settings = state.offer(self.num_steps, self._commit.steps_per_block(state.current))
            if settings is not None and id(req) in position:
                offered.append((position[id(req)], row_options_of(req, self._commit, settings)))
        self._switching = [req for req in self._switching if id(req) in position and state_of(req).wants_switch]
        self.forget()
        if not offered:
            return None
        numbers, options = zip(*offered, strict=True)
        return Offer(to_device(numbers, self._device), Rows.of(options, self._row_width).to(self._device))
