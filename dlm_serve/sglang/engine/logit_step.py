"""Apply to one forward what the requests of some of its rows ask of their logits.

The same for single tokens and for blocks, so that verified answers are the autoregressive ones: rules, then grammars,
then the token, then log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dlm_serve.decoding import Commit, Phase, Prediction, Rows, StepOutput, TokenChoice
from dlm_serve.decoding.denoise import is_denoising
from dlm_serve.decoding.logit_rules import RuledRows
from dlm_serve.sglang.engine.grammar_masks import GrammarMasks
from dlm_serve.sglang.engine.logit_rows import LogitRows
from dlm_serve.sglang.engine.logprobs import StepLogprobs
from dlm_serve.sglang.engine.planned_step import RowGroup
from dlm_serve.sglang.engine.requests import state_of
from dlm_serve.sglang.engine.to_device import to_device

Barrier = Callable[[], None]
"""Brings the grammars of requests behind the tokens of all steps before this one; waits for those."""


@dataclass(frozen=True)
class StepContext:
    """What there is to know about the step that forwards are part of."""

    number: int
    """The engine's."""
    logprobs: StepLogprobs | None
    """None if no request asks for any."""
    barrier: Barrier


@dataclass(frozen=True)
class _Masked:
    """Rows with grammars that may emit tokens."""

    rows: torch.Tensor  # [M] int64, positions among the asked rows
    masks: GrammarMasks


@dataclass(frozen=True)
class _AskedRows:
    """As many of a forward's rows as memory allows, whose requests ask something of their logits."""

    mine: LogitRows
    masked: _Masked | None = None


class LogitStep:
    """Makes `GroupLogits`, one for each forward."""

    def __init__(self, table: Rows, commit: Commit, choice: TokenChoice, vocab_size: int) -> None:
        self.table = table
        self.commit = commit
        self.choice = choice
        self.vocab_size = vocab_size

    def begin(
        self, group: RowGroup, indices: torch.Tensor, committed_lens: torch.Tensor, width: int, context: StepContext
    ) -> GroupLogits:
        """Prepare a forward of `width` tokens a row that is yet to be launched, over the rows of `group`.

        `indices` [B] int64 are those of the group in the table, `committed_lens` [B] their tokens before the forward.
        """
        for mine in group.logit_rows:
            if mine.ruled is not None and mine.ruled.ends_thinking:
                self._end_thinking(mine.ruled, mine.rows[mine.ruled_rows], indices, committed_lens, width)
        parts = [self._begin(mine, indices, width, context.number) for mine in group.logit_rows]
        return GroupLogits(self, group, indices, committed_lens, context, parts)

    def _end_thinking(
        self, ruled: RuledRows, rows: torch.Tensor, indices: torch.Tensor, committed_lens: torch.Tensor, width: int
    ) -> None:
        """Write the end of thinking into the blocks that are to be denoised in which it must stand."""
        at = indices[rows]
        tokens = self.table.tokens[at, :width]
        ended = ruled.with_ends(tokens, committed_lens[rows])
        is_denoised = self.table.phase[at] == Phase.DENOISE
        self.table.tokens[at, :width] = torch.where(is_denoised[:, None], ended, tokens)

    def _begin(self, mine: LogitRows, indices: torch.Tensor, width: int, step: int) -> _AskedRows:
        emitting = [row for row in mine.with_grammar if self.may_emit(mine, row, step)]
        if not emitting:
            return _AskedRows(mine)
        masked_rows = to_device(emitting, indices.device.type)
        tokens = self.table.tokens[indices[mine.rows[masked_rows]], :width]
        masks = GrammarMasks([mine.reqs[row] for row in emitting], tokens, self.vocab_size)
        return _AskedRows(mine, _Masked(masked_rows, masks))

    def may_emit(self, mine: LogitRows, row: int, step: int) -> bool:
        """Return whether a row may emit tokens in the engine's `step`, as far as the host knows."""
        state = state_of(mine.reqs[row])
        return state.may_emit(step, self.commit.steps_per_block(state.current))


@dataclass(frozen=True)
class GroupLogits:
    """The rows of one forward whose requests ask something of their logits."""

    _step: LogitStep
    _group: RowGroup
    _indices: torch.Tensor  # [B] int64
    _committed_lens: torch.Tensor  # [B] int64
    _context: StepContext
    _parts: list[_AskedRows]

    def of_tokens(self, logits: torch.Tensor) -> None:
        """Change `logits` [B, V] float32, behind the pending tokens of the rows, in place."""
        for part in self._parts:
            if part.mine.change_logits:
                rows = self._step.table.gather(self._indices[part.mine.rows], 1)
                logits[part.mine.rows] = self._changed(part, rows, logits[:, None]).squeeze(1)

    def of_block(self, logits: torch.Tensor, prediction: Prediction) -> None:
        """Overwrite what a forward predicts from `logits` [B, W, V] of any floating type, and what they come to."""
        for part in self._parts:
            asking = self._asking(part.mine)
            if not (part.mine.change_logits or asking):
                continue
            rows = self._step.table.gather(self._indices[part.mine.rows], logits.shape[1])
            changed = self._changed(part, rows, logits)
            if part.mine.change_logits:
                prediction.put_(part.mine.rows, self._predicted(part.mine, rows, changed))
            if asking:
                tokens = self._step.commit.emitted_tokens(rows, prediction.ids[part.mine.rows])
                self._note_logprobs(part.mine, asking, changed, tokens)

    def note_tokens(self, logits: torch.Tensor, token_ids: torch.Tensor) -> None:
        """Note log-probabilities of the sampled `token_ids` [B], of changed `logits` [B, V] float32."""
        for part in self._parts:
            rows, asking = part.mine.rows, self._asking(part.mine)
            if asking:
                self._note_logprobs(part.mine, asking, logits[rows, None], token_ids[rows, None])

    def count(self, output: StepOutput) -> None:
        """Count what the rows of the group emit."""
        for part in self._parts:
            if part.mine.ruled is not None:
                at = part.mine.rows[part.mine.ruled_rows]
                part.mine.ruled.count_(output.tokens[at], output.lens[at])

    def _changed(self, part: _AskedRows, rows: Rows, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits of the part's `rows` [N, W, V] float32 as their requests want them."""
        mine = part.mine
        changed = logits[mine.rows].float()
        if mine.ruled is not None:
            self._rule_(mine, mine.ruled, rows, changed)
        if part.masked is not None:
            self._context.barrier()
            at = part.masked.rows
            unmasked, masked = changed[at], changed[at]
            part.masked.masks.apply_(masked)
            # A grammar says what may follow a token, and drafts are predicted in its place.
            is_draft = is_denoising(rows.phase[at])
            changed[at] = torch.where(is_draft[:, None, None], unmasked, masked)
        return changed

    def _rule_(self, mine: LogitRows, ruled: RuledRows, rows: Rows, logits: torch.Tensor) -> None:
        """Change `logits` [N, W, V] float32 of the part's `rows` as `ruled` says, in place."""
        at = mine.ruled_rows
        tokens, committed_lens = rows.tokens[at], self._committed_lens[mine.rows[at]]
        if len(at) == len(logits) and not ruled.ends_thinking:  # logits of blocks are large: no copies
            ruled.adjust_(logits, tokens, committed_lens)
            return
        adjusted = logits[at]
        ruled.adjust_(adjusted, tokens, committed_lens)
        if ruled.ends_thinking:
            # What a block is denoised by stands for its own positions, and where thinking ends is written there.
            is_denoised = rows.phase[at] == Phase.DENOISE
            adjusted = torch.where(is_denoised[:, None, None], logits[at], adjusted)
        logits[at] = adjusted

    def _predicted(self, mine: LogitRows, rows: Rows, logits: torch.Tensor) -> Prediction:
        """Return what the changed `logits` [N, W, V] float32 of `rows` predict."""
        committed_lens = self._committed_lens[mine.rows]
        spec = self._step.commit.attention_spec(rows, committed_lens, self._step.choice.mask_token_id)
        return self._step.choice.predict(logits, spec.predicted_positions, rows)

    def _asking(self, mine: LogitRows) -> list[int]:
        """Return which of the rows ask for log-probabilities, and may emit tokens in this step."""
        return [row for row in mine.with_logprobs if self._step.may_emit(mine, row, self._context.number)]

    def _note_logprobs(self, mine: LogitRows, asking: list[int], logits: torch.Tensor, tokens: torch.Tensor) -> None:
        """Note log-probabilities of the `tokens` [N, W] that the rows may emit, by `logits` [N, W, V] float32."""
        assert self._context.logprobs is not None, "rows of the batch ask for some"
        at = to_device(asking, tokens.device.type)
        rows = mine.rows[at]
        scaled = logits[at] / self._step.table.temperature[self._indices[rows], None, None]
        numbers = [self._group.numbers[mine.numbers[row]] for row in asking]
        self._context.logprobs.add(numbers, self._group.in_batch(rows), scaled, tokens[at])
