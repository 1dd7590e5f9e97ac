"""The rows of a step whose requests ask more of their logits than one token: rules, grammars, log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dlm_serve.decoding.logit_rules import NO_RULES, RuledRows
from dlm_serve.sglang.engine.requests import end_ids_of, state_of
from dlm_serve.sglang.engine.to_device import to_device
from dlm_serve.sglang.protocols import ReqLike
from dlm_serve.sglang.serving import current

_RULED = "dlm_ruled"
"""The attribute of SGLang's requests that holds their rules."""

_MOST_LOGITS = 1 << 24
"""Logits that are changed at a time, of which there are several copies in float32 then."""


@dataclass(frozen=True)
class LogitRows:
    """N such rows of a group."""

    numbers: tuple[int, ...]
    """Positions in the group."""
    rows: torch.Tensor  # [N] int64, the same on the device
    reqs: list[ReqLike]
    ruled: RuledRows | None
    """Those of them that have rules,"""
    ruled_rows: torch.Tensor  # [M] int64, and which of the N they are
    with_grammar: tuple[int, ...]
    """Which of the N have a grammar, and"""
    with_logprobs: tuple[int, ...]
    """which ask for log-probabilities."""

    @property
    def change_logits(self) -> bool:
        """Whether any of them is to have other tokens than its logits say."""
        return self.ruled is not None or bool(self.with_grammar)

    @classmethod
    def of(cls, reqs: Sequence[ReqLike], width: int, device: str) -> list[LogitRows]:
        """Return those of the `reqs` of a group, whose rows have `width` tokens, in parts that memory allows."""
        numbers = [number for number, req in enumerate(reqs) if _asks(req)]
        if not numbers:
            return []
        most = max(1, _MOST_LOGITS // (width * current().checkpoint.vocab_size))
        return [cls._part(reqs, numbers[i : i + most], device) for i in range(0, len(numbers), most)]

    @classmethod
    def _part(cls, reqs: Sequence[ReqLike], numbers: Sequence[int], device: str) -> LogitRows:
        mine = [reqs[number] for number in numbers]
        ruled = [i for i, req in enumerate(mine) if has_rules(req)]
        return cls(
            numbers=tuple(numbers),
            rows=to_device(numbers, device),
            reqs=mine,
            ruled=gathered([mine[i] for i in ruled]) if ruled else None,
            ruled_rows=to_device(ruled, device),
            with_grammar=tuple(i for i, req in enumerate(mine) if req.grammar is not None),
            with_logprobs=tuple(i for i, req in enumerate(mine) if req.return_logprob),
        )


def has_rules(req: ReqLike) -> bool:
    """Return whether SGLang's `req` changes its logits."""
    return state_of(req).plan.logit_rules != NO_RULES


def begin_rules(reqs: Sequence[ReqLike], rows: torch.Tensor, counts: torch.Tensor) -> RuledRows:
    """Return the rules of SGLang's N `reqs`, which have some, with their answers so far counted.

    They have the `rows` [N] int64 of `counts` [R, V] int32.
    """
    for req, row in zip(reqs, rows[:, None], strict=True):
        rules, prompt_len = state_of(req).plan.logit_rules, len(req.origin_input_ids)
        ruled = RuledRows.of(rules, end_ids_of(req), prompt_len, req.output_ids, counts, row)
        vars(req)[_RULED] = ruled
    return gathered(reqs)


def gathered(reqs: Sequence[ReqLike]) -> RuledRows:
    """Return the rules of SGLang's `reqs`, which are begun, as one."""
    return RuledRows.stack([vars(req)[_RULED] for req in reqs])


def _asks(req: ReqLike) -> bool:
    return has_rules(req) or req.grammar is not None or req.return_logprob
