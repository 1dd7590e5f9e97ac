"""What requests change about their logits: penalties, biases, a least length, an end of thinking.

Semantics: SGLang's penalizers (`sampling/penaltylib`) and `SamplingBatchInfo.apply_logits_bias`, as they are where each
token is known before the next is chosen. Along a draft each position counts the drafted tokens before it, so that a
verified answer is the autoregressive one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class LogitRules:
    """What one request changes about its logits; the defaults change nothing."""

    frequency_penalty: float = 0.0
    """Taken off a token's logit for each time that it stands in the answer."""
    presence_penalty: float = 0.0
    """Taken off if it stands there at all."""
    repetition_penalty: float = 1.0
    """What the logit of such a token is divided by, or multiplied by where it is negative."""
    min_new_tokens: int = 0
    """Length of the answer before which nothing ends it."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids, and what is added to their logits."""
    max_thinking_tokens: int | None = None
    """Length of the answer at which thinking ends that has not ended by itself; None lets it go on."""
    end_think_token_id: int = 0
    """The token that ends it."""


NO_RULES = LogitRules()

_FOR_EVER = 1 << 40


@dataclass(frozen=True)
class RuledRows:
    """The rules of N rows as tensors, and how often each token stands in their answers."""

    counts: torch.Tensor  # [R, V] int32, of all requests: large, so that there is one such table and never a copy
    rows: torch.Tensor  # [N] int64, which of its rows are theirs
    frequency_penalty: torch.Tensor  # [N] float32
    presence_penalty: torch.Tensor  # [N] float32
    repetition_penalty: torch.Tensor  # [N] float32
    min_new_tokens: torch.Tensor  # [N] int64
    num_prompt: torch.Tensor  # [N] int64, tokens in front of the answer
    max_thinking_tokens: torch.Tensor  # [N] int64, more than any answer has where thinking may go on
    end_think_token_id: torch.Tensor  # [N] int64
    biased_ids: torch.Tensor  # [N, K] int64, padded with 0
    biases: torch.Tensor  # [N, K] float32, 0 where padded
    stop_ids: torch.Tensor  # [N, S] int64, padded with 0
    stops: torch.Tensor  # [N, S] float32, -inf, 0 where padded
    penalises: bool
    """Whether any of them penalises."""
    penalises_repetition: bool
    """Whether any of them has a repetition penalty."""
    ends_thinking: bool
    """Whether any of them ends thinking."""

    @classmethod
    def of(
        cls,
        rules: LogitRules,
        stop_ids: Collection[int],
        prompt_len: int,
        answer: Sequence[int],
        counts: torch.Tensor,
        row: torch.Tensor,
    ) -> RuledRows:
        """Return the rules of a request whose `answer` so far stands behind `prompt_len` tokens; count its tokens.

        They are counted anew in the `row` [1] int64 of `counts` [R, V] int32. All else stays on the host until `stack`
        brings it to the device of `counts`. `stop_ids` are what ends the request.
        """
        vocab_size = counts.shape[1]
        counts.index_fill_(0, row, 0)
        if len(answer):
            ids = torch.tensor(answer, dtype=torch.int64).to(counts.device, non_blocking=True)
            counts.view(-1).scatter_add_(0, row * vocab_size + ids, torch.ones_like(ids, dtype=torch.int32))
        biased = [token_id for token_id, _ in rules.logit_bias]
        stopping = sorted(token_id for token_id in stop_ids if token_id < vocab_size) if rules.min_new_tokens else []
        columns = {
            "frequency_penalty": torch.tensor(rules.frequency_penalty),
            "presence_penalty": torch.tensor(rules.presence_penalty),
            "repetition_penalty": torch.tensor(rules.repetition_penalty),
            "min_new_tokens": torch.tensor(rules.min_new_tokens),
            "num_prompt": torch.tensor(prompt_len),
            "max_thinking_tokens": torch.tensor(
                _FOR_EVER if rules.max_thinking_tokens is None else rules.max_thinking_tokens
            ),
            "end_think_token_id": torch.tensor(rules.end_think_token_id),
            "biased_ids": torch.tensor(biased, dtype=torch.int64),
            "biases": torch.tensor([bias for _, bias in rules.logit_bias], dtype=torch.float32),
            "stop_ids": torch.tensor(stopping, dtype=torch.int64),
            "stops": torch.full((len(stopping),), float("-inf")),
        }
        repeats = rules.repetition_penalty != 1.0
        return cls(
            counts=counts,
            rows=row,
            **{name: column[None] for name, column in columns.items()},
            penalises=repeats or (rules.frequency_penalty, rules.presence_penalty) != (0.0, 0.0),
            penalises_repetition=repeats,
            ends_thinking=rules.max_thinking_tokens is not None,
        )

    @classmethod
    def stack(cls, rows: Sequence[RuledRows]) -> RuledRows:
        """Return those of N requests, which are counted in one table, on its device."""
        counts = rows[0].counts

        def joined(name: str) -> Any:
            tensors = [getattr(each, name) for each in rows]
            if name == "counts":
                return counts
            if isinstance(tensors[0], bool):
                return any(tensors)
            is_column = tensors[0].dim() == 1
            joint = torch.cat(tensors) if is_column else pad_sequence([t[0] for t in tensors], batch_first=True)
            return joint.to(counts.device, non_blocking=True)

        return cls(**{field.name: joined(field.name) for field in fields(cls)})

    def adjust_(self, logits: torch.Tensor, tokens: torch.Tensor, committed_lens: torch.Tensor) -> None:
        """Change `logits` [N, W, V] float32, which stand behind `tokens` [N, W], the first of which is counted already.

        `committed_lens` [N] are all tokens of a request in front of these.
        """
        if self.penalises:
            self._penalise_(logits, tokens[:, 1:])
        width = logits.shape[1]
        num_output = committed_lens[:, None] + 1 - self.num_prompt[:, None] + torch.arange(width, device=logits.device)
        is_too_short = num_output < self.min_new_tokens[:, None]
        for ids, added in (
            (self.biased_ids, self.biases[:, None].expand(-1, width, -1)),
            (self.stop_ids, torch.where(is_too_short[..., None], self.stops[:, None], 0.0)),
        ):
            if ids.shape[1]:
                logits.scatter_add_(2, ids[:, None].expand(-1, width, -1), added)
        if self.ends_thinking:
            self._end_thinking_(logits, tokens[:, 1:], num_output)

    def with_ends(self, tokens: torch.Tensor, committed_lens: torch.Tensor) -> torch.Tensor:
        """Return `tokens` [N, W] of blocks that are denoised, with the end of thinking where it must stand in them.

        `committed_lens` [N] are as in `adjust_`, which sees to the first token of a block.

        Semantics: `generate` of Nemotron-Labs-Diffusion with `max_thinking_tokens`, which asks whether thinking has
        ended before the block.
        """
        end = self.end_think_token_id[:, None]
        is_over = self._counts_of(end) > (tokens[:, :1] == end).int()
        column = (self.max_thinking_tokens - (committed_lens - self.num_prompt))[:, None]
        columns = torch.arange(tokens.shape[1], device=tokens.device)
        return torch.where((columns == column) & (column > 0) & ~is_over, end, tokens)

    def count_(self, tokens: torch.Tensor, lens: torch.Tensor) -> None:
        """Count the first `lens` [N] of the `tokens` [N, W] that each row emits."""
        is_emitted = torch.arange(tokens.shape[1], device=tokens.device) < lens[:, None]
        at = self.rows[:, None] * self.counts.shape[1] + torch.where(is_emitted, tokens, 0)
        self.counts.view(-1).scatter_add_(0, at.flatten(), is_emitted.int().flatten())

    def _counts_of(self, ids: torch.Tensor) -> torch.Tensor:
        """Return how often each of `ids` [N, K] stands in the answers, [N, K] int32."""
        return self.counts[self.rows[:, None], ids]

    def _end_thinking_(self, logits: torch.Tensor, drafted: torch.Tensor, num_output: torch.Tensor) -> None:
        """Leave only the end of thinking where `num_output` [N, W] tokens are answered and it is not among them.

        Semantics: `ar_generate` of Nemotron-Labs-Diffusion with `max_thinking_tokens`.
        """
        end = self.end_think_token_id[:, None]
        along = pad((drafted == end).int().cumsum(1), (1, 0))
        is_over = self._counts_of(end) + along > 0
        must_end = (num_output >= self.max_thinking_tokens[:, None]) & ~is_over
        at = end[:, None].expand(-1, logits.shape[1], -1)
        ends = torch.where(must_end[..., None], 0.0, logits.gather(2, at))
        logits.masked_fill_(must_end[..., None], float("-inf")).scatter_(2, at, ends)

    def _penalise_(self, logits: torch.Tensor, drafted: torch.Tensor) -> None:
        """Penalise what stands in the answer and, at each position, among the `drafted` tokens [N, W - 1] before it."""
        at = drafted[:, None].expand(-1, logits.shape[1], -1)
        unchanged = logits.gather(2, at)
        same = (drafted[:, :, None] == drafted[:, None, :]).int()
        along = pad(same.cumsum(1), (0, 0, 1, 0))  # [N, W, W - 1], how often before each position
        self._penalise_counted_(logits, self.counts[self.rows, None])
        self._penalise_counted_(unchanged, self._counts_of(drafted)[:, None] + along)
        logits.scatter_(2, at, unchanged)

    def _penalise_counted_(self, logits: torch.Tensor, counts: torch.Tensor) -> None:
        """Penalise `logits` [N, W, *] of tokens that stand in the answer `counts` [N, 1 or W, *] times.

        In place, with one more tensor of that size: logits of blocks are large.
        """
        is_there = counts > 0
        logits -= self.frequency_penalty[:, None, None] * counts + self.presence_penalty[:, None, None] * is_there
        if not self.penalises_repetition:
            return
        scale = torch.where(is_there, self.repetition_penalty[:, None, None], 1.0)
        divided = logits / scale
        is_negative = logits < 0
        logits *= scale
        torch.where(is_negative, logits, divided, out=logits)
