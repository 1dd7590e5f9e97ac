"""Requests, costs and batches for the tests of the router."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlm_serve.decoding import Choice, DecodePlan, Mode, ModeSettings, RequestState
from dlm_serve.routing.batch import Roster, RunningBatch, RunningRequest
from dlm_serve.routing.costs import CostTable

WIDTHS = (4, 8, 16, 32)
CHOICES: tuple[Choice, ...] = tuple(Choice(Mode.SELF_SPECULATION, width) for width in WIDTHS)
ONE_BY_ONE = ModeSettings(Mode.AUTOREGRESSIVE, 1)


def drafts(block_length: int) -> ModeSettings:
    return ModeSettings(Mode.SELF_SPECULATION, block_length, 0.0, block_length)


FREE = DecodePlan((*(drafts(width) for width in reversed(WIDTHS)), ONE_BY_ONE))
PINNED = DecodePlan((ONE_BY_ONE,))
PINNED_BLOCKS = DecodePlan((drafts(16),))


def request_of(plan: DecodePlan = FREE, rid: str = "r", remaining: int = 1000, context: int = 100) -> RunningRequest:
    return RunningRequest(rid, RequestState(plan), context, remaining, remaining)


def requests_of(plans: Sequence[DecodePlan]) -> list[RunningRequest]:
    return [request_of(plan, rid=str(number)) for number, plan in enumerate(plans)]


def batch_of(requests: Sequence[RunningRequest], choices: tuple[Choice, ...] = CHOICES) -> RunningBatch:
    return Roster(choices, len(requests)).update(requests, lambda *_: None)


def card(free_tokens: float = 150, ms_per_token: float = 0.02, max_rows: int = 256) -> CostTable:
    """A GPU whose forwards take 7 ms for up to `free_tokens` tokens, and more beyond; context costs a little."""
    rows = np.arange(max_rows + 1)
    tokens = np.array(WIDTHS)[:, None] * rows
    return CostTable(
        WIDTHS,
        7 + ms_per_token * np.maximum(rows - free_tokens, 0),
        7 + ms_per_token * np.maximum(tokens - free_tokens, 0),
        decode_context_ms=1e-5,
        block_context_ms=np.full(len(WIDTHS), 1e-5),
    )
