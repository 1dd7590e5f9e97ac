"""Log-probabilities of the tokens that a decode step emits, in the form in which SGLang reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.utils.common import async_d2h

from dlm_serve.sglang.engine.to_device import to_device
from dlm_serve.sglang.protocols import BatchLike


class _OnItsWay:
    """A tensor [N, W, K] that is being copied to the host, and becomes numbers there once, when that is done."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = async_d2h(tensor)

    @cached_property
    def values(self) -> list[list[list[float]]]:
        """The numbers."""
        found: list[list[list[float]]] = self._tensor.tolist()
        return found


class _Place(NamedTuple):
    """The first `number` values at a row and column. SGLang asks for them as it asks a tensor."""

    source: _OnItsWay
    row: int
    column: int
    number: int

    def tolist(self) -> list[float]:
        return self.source.values[self.row][self.column][: self.number]


def _finite(logprobs: torch.Tensor) -> torch.Tensor:
    """Return what JSON can hold: the lowest number for what cannot be."""
    return logprobs.clamp(min=torch.finfo(logprobs.dtype).min)


_NOTHING = torch.zeros(0)


@dataclass
class StepLogprobs:
    """What the rows of a step ask for, and what is found of it."""

    batch: BatchLike
    _chosen: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    _top: dict[tuple[int, int], tuple[_Place, _Place]] = field(default_factory=dict)
    _of_ids: dict[tuple[int, int], _Place] = field(default_factory=dict)

    def add(self, numbers: Sequence[int], rows: torch.Tensor, logits: torch.Tensor, tokens: torch.Tensor) -> None:
        """Note, for the requests at `numbers` of the batch, the log-probabilities of what their rows may emit.

        `rows` [N] int64 are the numbers on the device; `logits` [N, W, V] float32 those by which tokens are drawn,
        temperature included; `tokens` [N, W] int64.
        """
        total = logits.logsumexp(-1)
        self._chosen.append((rows, _finite(logits.gather(2, tokens[..., None]).squeeze(2) - total)))
        self._add_top(numbers, logits, total)
        for row, number in enumerate(numbers):
            ids = self.batch.token_ids_logprobs[number]
            if ids is not None:
                at = to_device(ids, logits.device.type)
                values = _OnItsWay(_finite(logits[row, None][..., at] - total[row, None, :, None]))
                self._of_ids |= {
                    (number, column): _Place(values, 0, column, len(ids)) for column in range(logits.shape[1])
                }

    def _add_top(self, numbers: Sequence[int], logits: torch.Tensor, total: torch.Tensor) -> None:
        most = max(self.batch.top_logprobs_nums[number] for number in numbers)
        if not most:
            return
        values, ids = logits.topk(most, dim=-1)
        found = _OnItsWay(_finite(values - total[..., None])), _OnItsWay(ids)
        for row, number in enumerate(numbers):
            asked = self.batch.top_logprobs_nums[number]
            for column in range(logits.shape[1]):
                self._top[number, column] = (
                    _Place(found[0], row, column, asked),
                    _Place(found[1], row, column, asked),
                )

    def write_to(self, output: LogitsProcessorOutput, width: int) -> None:
        """Write what was found into SGLang's `output`, which has `width` tokens for each row of the batch."""
        num_rows = len(self.batch.reqs)
        output.next_token_logprobs = torch.zeros(num_rows, width, device=self.batch.seq_lens.device)
        for rows, chosen in self._chosen:
            output.next_token_logprobs[:, : chosen.shape[1]].index_copy_(0, rows, chosen[:, :width])
        if not (self._top or self._of_ids):
            return
        places = [(number, column) for number in range(num_rows) for column in range(width)]
        if self._top:
            nothing = (_NOTHING, _NOTHING)
            output.next_token_top_logprobs_val = [self._top.get(place, nothing)[0] for place in places]
            output.next_token_top_logprobs_idx = [self._top.get(place, nothing)[1] for place in places]
        if self._of_ids:
            output.next_token_token_ids_logprobs_val = [self._of_ids.get(place, _NOTHING) for place in places]
            output.next_token_token_ids_logprobs_idx = [
                self.batch.token_ids_logprobs[number] if (number, column) in self._of_ids else []
                for number, column in places
            ]
