"""Commit with the next forward: windows of masks behind decided tokens, of which the longest sure run is taken.

Semantics: `prob_conf` and `entropy_conf` of `SDLM_generate` (`sdlm_inference.py` of OpenGVLab/SDLM). The window is
the last token, its anchor, and `block_length` - 1 masks, bidirectional; it sees all tokens before the anchor, and
the anchor itself only as part of the window. Hence the row of a forward is the decided tokens that have no causal
KV yet, of which the last is the anchor, and the masks: the tokens before the anchor are encoded causally, their KV
is kept, and the anchor's is left to the next forward. No query needs a mask that is not of that form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar

import torch

from dlm_serve.decoding.attention_spec import AttentionSpec
from dlm_serve.decoding.commit.base import Commit, Forward
from dlm_serve.decoding.decode_plan import ModeSettings
from dlm_serve.decoding.modes import FIRST_PHASE, Phase
from dlm_serve.decoding.prompt_mask import PromptMask
from dlm_serve.decoding.request_state import RequestState
from dlm_serve.decoding.rows import RowOptions, Rows
from dlm_serve.decoding.step_output import StepOutput
from dlm_serve.decoding.token_choice import Prediction


class WindowAlgorithm(StrEnum):
    """How many of a window's tokens are taken."""

    PROB_CONF = "prob_conf"
    """As long as they are probable enough."""
    ENTROPY_CONF = "entropy_conf"
    """As long as their distributions have little enough entropy."""
    SELF_SPECULATIVE = "self_speculative"
    """As long as windows behind each of them agree: see `draft_windows`."""


def entropy_below(threshold: float, vocab_size: int) -> float:
    """Return the entropy in nats below which a slot's certainty, 1 - entropy / ln(vocabulary), exceeds `threshold`.

    The reference adds 1e-9 inside the logarithm, which moves the certainty by less than 2e-5.
    """
    return (1 - threshold) * math.log(vocab_size)


def verifies_drafts(settings: ModeSettings) -> bool:
    """Return whether a window behind each token of its drafts says how many are taken."""
    return settings.algorithm == WindowAlgorithm.SELF_SPECULATIVE


@dataclass(frozen=True)
class WindowCommit(Commit):
    """Commits decided tokens causally, by the forward that predicts what follows them."""

    prompt_mask: PromptMask = PromptMask.CAUSAL
    decodes_tokens: ClassVar[bool] = True
    predicts_next: ClassVar[bool] = True

    def attention_spec(self, rows: Rows, committed_lens: torch.Tensor, mask_token_id: int) -> AttentionSpec:
        """See `Commit`: tokens are causal up to the anchor, then bidirectional; all predict the next position.

        A row that decodes one token at a time is its anchor alone, and keeps its KV.
        """
        anchor = _anchor(rows)
        return AttentionSpec.of(
            rows,
            committed_lens,
            causal_len=anchor,
            kept_len=torch.where(rows.phase == Phase.DECODE, rows.new_len, anchor),
            shift=torch.ones_like(rows.phase, dtype=torch.int64),
            lora_on=torch.zeros_like(rows.phase, dtype=torch.bool),
        )

    def advance(self, rows: Rows, prediction: Prediction, mask_token_id: int) -> tuple[Rows, StepOutput]:
        """See `Commit`."""
        num_accepted = _num_accepted(rows, prediction)
        decoded = rows.start_block(prediction.ids[:, 0], mask_token_id)
        window = _next_window(rows, prediction.ids, num_accepted, mask_token_id)
        return decoded.where(rows.phase == Phase.DECODE, window), _decided(rows, prediction.ids, num_accepted)

    def row_options(self, settings: ModeSettings, seed: int, stop_ids: Sequence[int], vocab_size: int) -> RowOptions:
        """See `Commit`."""
        options = super().row_options(settings, seed, stop_ids, vocab_size)
        if verifies_drafts(settings):
            return replace(options, first_phase=Phase.DRAFT)
        if settings.algorithm != WindowAlgorithm.ENTROPY_CONF or settings.threshold is None:
            return options
        return replace(options, threshold=entropy_below(settings.threshold, vocab_size), by_entropy=True)

    def forward_of(self, state: RequestState) -> Forward:
        """See `Commit`."""
        found = super().forward_of(state)
        return Forward.DRAFT_WINDOWS if found is Forward.BLOCK and verifies_drafts(state.current) else found

    def phases_of(self, settings: ModeSettings, number: int, is_settled: bool, emits: bool) -> dict[Phase, int]:
        """See `Commit`: each forward fills masks, or verifies a draft."""
        return {Phase.VERIFY if verifies_drafts(settings) else FIRST_PHASE[settings.mode]: number}

    def row_width(self, block_length: int) -> int:
        """See `Commit`: the decided tokens of a block, and the next window."""
        return 2 * block_length

    def longest_block(self, block_size: int, max_width: int) -> int:
        """See `Commit`: models find up to twice as many tokens as they were trained to."""
        return min(2 * block_size, max_width // 2)

    def known_start(self, state: RequestState, tokens: list[int], num_prompt: int) -> list[int]:
        """Return the anchor, the last token."""
        return tokens[-1:]

    def shareable_len(
        self, state: RequestState, num_prompt: int, num_tokens: int, num_encoded: int, block_size: int
    ) -> int:
        """See `Commit`.

        What a step accepts gets its KV from the next one, unless drafts are verified; the newest token has none.
        """
        num_accepted = 0 if state.current.threshold is None else state.last_emitted
        return max(num_encoded, num_tokens - 1 - num_accepted)


def _anchor(rows: Rows) -> torch.Tensor:
    """Return the anchor's column [B] int32: the window is the last `block_length` columns."""
    return rows.new_len - rows.block_length


def _num_accepted(rows: Rows, prediction: Prediction) -> torch.Tensor:
    """Return the length of the run of sure slots from the window's first, but at least that one, [B] int64."""
    limit = rows.threshold[:, None]
    sure = torch.where(rows.by_entropy[:, None], prediction.entropy < limit, prediction.confidence > limit)
    before = rows.columns < _anchor(rows)[:, None]
    run = ((sure | before) & (rows.columns < rows.new_len[:, None])).long().cumprod(1).sum(1)
    return (run - _anchor(rows)).clamp(min=1)


def _next_window(rows: Rows, ids: torch.Tensor, num_accepted: torch.Tensor, mask_token_id: int) -> Rows:
    """Return the rows [old anchor, accepted tokens, masks], all but the masks emitted.

    The anchor of a first window was encoded by the EXTEND call, and stays behind.
    """
    columns, anchor = rows.columns, _anchor(rows).long()[:, None]
    num_before = (rows.step > 0).long()[:, None]
    accepted = ids.gather(1, (anchor + columns - num_before).clamp(0, rows.width - 1))
    tokens = torch.where(columns < num_before, rows.tokens.gather(1, anchor), accepted)
    num_decided = (num_before.squeeze(1) + num_accepted).to(torch.int32)
    return rows.replace(
        tokens=torch.where(columns < num_decided[:, None], tokens, mask_token_id),
        new_len=num_decided + rows.block_length - 1,
        num_emitted=num_decided,
        step=rows.step + 1,
    )


def _decided(rows: Rows, ids: torch.Tensor, num_accepted: torch.Tensor) -> StepOutput:
    """Return the decided tokens that are not emitted yet, then the accepted ones."""
    columns = rows.columns + rows.num_emitted[:, None]
    end = _anchor(rows)[:, None] + 1
    known = rows.tokens.gather(1, columns.clamp(max=rows.width - 1).long())
    new = ids.gather(1, (columns - 1).clamp(0, rows.width - 1).long())
    lens = end.squeeze(1) + num_accepted - rows.num_emitted
    return StepOutput(torch.where(columns < end, known, new), lens.to(torch.int32))
