"""What a family's way to commit decides, on the device and on the host.

"Commit" is how the KV of decided tokens comes about. Everything else in how a family decodes follows from it, so one
object owns both halves: what a forward does to rows, as tensor functions, and what the host must know to schedule
requests. Subclasses: `CausalCommit`, `BlockCommit`, `WindowCommit`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum, auto
from typing import ClassVar

import torch

from dlm_serve.decoding.attention_spec import AttentionSpec
from dlm_serve.decoding.decode_plan import ModeSettings
from dlm_serve.decoding.modes import FIRST_PHASE, Mode, Phase
from dlm_serve.decoding.prompt_mask import PromptMask
from dlm_serve.decoding.request_state import RequestState
from dlm_serve.decoding.rows import RowOptions, Rows
from dlm_serve.decoding.step_output import StepOutput
from dlm_serve.decoding.token_choice import Prediction


class Forward(Enum):
    """The forward that a row takes in a step."""

    DECODE = auto()
    """One token, through the engine's own decode."""
    BLOCK = auto()
    """A block, beside rows in any phase."""
    DRAFT_WINDOWS = auto()
    """A window behind each token of its draft: several rows for one request."""


class Commit(ABC):
    """How a family commits."""

    prompt_mask: PromptMask
    decodes_tokens: ClassVar[bool]
    """Whether rows of single tokens can occur, as of the engine's own decode."""
    predicts_next: ClassVar[bool] = False
    """Whether a forward over masks predicts the token behind each position, and not the one at it."""
    scores_tokens: ClassVar[bool] = False
    """Whether the forward that commits a block says how likely each of its tokens is behind those before it."""
    on_grid: bool = False
    """Whether blocks lie on a grid from position 0, so that the end of a prompt may be the start of the first one."""

    # On the device.

    @abstractmethod
    def attention_spec(self, rows: Rows, committed_lens: torch.Tensor, mask_token_id: int) -> AttentionSpec:
        """Return how `rows` enter the next forward, as their phases say, behind `committed_lens` [B] tokens."""

    @abstractmethod
    def advance(self, rows: Rows, prediction: Prediction, mask_token_id: int) -> tuple[Rows, StepOutput]:
        """Return the rows after a forward with these predictions, and what they emit."""

    def advance_(
        self, table: Rows, indices: torch.Tensor, anchors: torch.Tensor, prediction: Prediction, mask_token_id: int
    ) -> StepOutput:
        """Advance the rows of `table` at `indices` [B] int64 in place; return what they emit.

        `anchors` [B, W] int32 are those of the spec with which they entered the forward.
        """
        rows = table.gather(indices, prediction.ids.shape[1])
        after, output = self.advance(rows, prediction, mask_token_id)
        table.scatter_(indices, after)
        return output

    def emitted_tokens(self, rows: Rows, ids: torch.Tensor) -> torch.Tensor:
        """Return the tokens [B, W] that `rows` emit if they do behind a forward that predicts `ids` [B, W].

        The logits at a position are those of the token at it.
        """
        return ids

    # On the host.

    def row_options(self, settings: ModeSettings, seed: int, stop_ids: Sequence[int], vocab_size: int) -> RowOptions:
        """Return what the device must know about a request with these settings."""
        return RowOptions(
            first_phase=FIRST_PHASE[settings.mode],
            block_length=settings.block_length,
            threshold=settings.threshold,
            steps=settings.steps,
            convergence_threshold=settings.convergence_threshold,
            seed=seed,
            stop_ids=stop_ids,
        )

    def forward_of(self, state: RequestState) -> Forward:
        """Return the forward that a request takes in a step."""
        return Forward.DECODE if state.current.mode is Mode.AUTOREGRESSIVE else Forward.BLOCK

    @abstractmethod
    def phases_of(self, settings: ModeSettings, number: int, is_settled: bool, emits: bool) -> dict[Phase, int]:
        """Return what a row did in its last `number` forwards, of which none but the last may have emitted.

        `is_settled` says that its block was denoised before them; `emits` that the last of them emitted.
        """

    def steps_per_block(self, settings: ModeSettings) -> int | None:
        """Return how many steps each block takes with these settings; None where that depends on the tokens."""
        return None

    def row_width(self, block_length: int) -> int:
        """Return the most tokens that a row with blocks of `block_length` has."""
        return block_length

    def longest_block(self, block_size: int, max_width: int) -> int:
        """Return the longest block in rows of at most `max_width` tokens, of a model trained with `block_size`."""
        return max_width

    def usable_widths(self, block_size: int, widths: Sequence[int]) -> list[int]:
        """Return which of the `widths` rows can take, ascending."""
        return sorted(widths)

    def span_ends(self, num_prompt: int, num_tokens: int, block_size: int, block_length: int) -> list[int]:
        """Return where the spans of a prompt, and of the part of its answer that is there, end, ascending.

        The tokens of a span see each other and everything before it. Under a causal mask each is one token.
        """
        return [*range(1, num_tokens + 1)]

    @abstractmethod
    def known_start(self, state: RequestState, tokens: list[int], num_prompt: int) -> list[int] | None:
        """Return the last of all `tokens` of a request, those with which its block behind an EXTEND call begins.

        None where the block begins with the token that the prefill predicts. The first `num_prompt` tokens are the
        prompt. The request does not decode autoregressively.
        """

    def shareable_len(
        self, state: RequestState, num_prompt: int, num_tokens: int, num_encoded: int, block_size: int
    ) -> int:
        """Return how many of its first tokens have KV that another request with the same tokens may use.

        `num_encoded` of its `num_tokens` tokens were encoded by EXTEND calls.
        """
        return num_tokens

    def is_private(self, state: RequestState, is_resumed: bool) -> bool:
        """Return whether KV of a request, of which EXTEND calls encode a part, is not for other requests."""
        return False
