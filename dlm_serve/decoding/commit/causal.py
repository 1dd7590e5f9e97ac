"""Commit causally: each block starts with the token that the commit before it predicted.

Semantics: `generate`, `ar_generate` and `linear_spec_generate` of Nemotron-Labs-Diffusion. A block is the pending
token followed by masks. Denoising fills masks; a causal forward over the full block then emits it, and its last
prediction is the pending token of the next block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from dlm_serve.decoding.attention_spec import AttentionSpec
from dlm_serve.decoding.commit.base import Commit
from dlm_serve.decoding.decode_plan import ModeSettings
from dlm_serve.decoding.denoise import denoise, first_stop, is_denoising
from dlm_serve.decoding.first_block import FirstBlock
from dlm_serve.decoding.modes import FIRST_PHASE, Mode, Phase
from dlm_serve.decoding.prompt_mask import PromptMask
from dlm_serve.decoding.request_state import RequestState
from dlm_serve.decoding.rows import RowOptions, Rows
from dlm_serve.decoding.step_output import StepOutput
from dlm_serve.decoding.token_choice import Prediction, accepted_lens


@dataclass(frozen=True)
class CausalCommit(Commit):
    """Commits a block by a causal forward over it."""

    prompt_mask: PromptMask = PromptMask.CAUSAL
    decodes_tokens: ClassVar[bool] = True

    def attention_spec(self, rows: Rows, committed_lens: torch.Tensor) -> AttentionSpec:
        """See `Commit`: denoising rows are bidirectional and predict their own positions, others are causal."""
        denoising = is_denoising(rows.phase)
        return AttentionSpec.of(
            rows,
            committed_lens,
            causal_len=torch.where(denoising, 0, rows.width).to(torch.int32),
            kept_len=torch.where(denoising, 0, rows.new_len),
            shift=(~denoising).long(),
            lora_on=rows.phase == Phase.DRAFT,
        )

    def advance(self, rows: Rows, prediction: Prediction, mask_token_id: int) -> tuple[Rows, StepOutput]:
        """See `Commit`."""
        verified = rows.phase != Phase.COMMIT
        tokens = torch.where(verified[:, None], prediction.ids, _committed_tokens(rows, prediction.ids))
        lens = torch.where(verified, _verified_lens(rows, prediction.ids), _committed_lens(rows))
        pending = tokens.gather(1, (lens.long() - 1)[:, None]).squeeze(1)

        denoising = is_denoising(rows.phase)
        denoised = denoise(rows, prediction, mask_token_id, num_masks=rows.block_length - 1)
        after = denoised.where(denoising, rows.start_block(pending, mask_token_id))
        return after, StepOutput(tokens, torch.where(denoising, 0, lens).to(torch.int32))

    def advance_(self, table: Rows, indices: torch.Tensor, prediction: Prediction, mask_token_id: int) -> StepOutput:
        """See `Commit`. On a GPU one kernel does it."""
        if not indices.is_cuda:
            return super().advance_(table, indices, prediction, mask_token_id)
        from dlm_kernels.block_advance.triton import advance_

        predicted = (prediction.ids, prediction.confidence, prediction.entropy)
        return StepOutput(*advance_(table, indices, *predicted, mask_token_id))

    def flush(self, rows: Rows) -> tuple[Rows, StepOutput]:
        """Emit nothing: the commit emits a block together with the token behind it."""
        return rows, StepOutput.empty(rows.tokens.shape[0], rows.width, rows.tokens.device)

    def skip_emitted(self, rows: Rows, num_emitted: torch.Tensor, mask_token_id: int) -> tuple[Rows, torch.Tensor]:
        """See `skip_encoded`."""
        return skip_encoded(rows, num_emitted, mask_token_id)

    def row_options(self, settings: ModeSettings, seed: int, stop_ids: Sequence[int], vocab_size: int) -> RowOptions:
        """See `Commit`. A block of one token is its pending token: nothing to denoise."""
        options = super().row_options(settings, seed, stop_ids, vocab_size)
        return (
            replace(options, first_phase=options.first_phase.after_denoising) if settings.block_length == 1 else options
        )

    def phases_of(self, settings: ModeSettings, number: int, is_settled: bool, emits: bool) -> dict[Phase, int]:
        """See `Commit`: what emits is a commit or a verification."""
        first = FIRST_PHASE[settings.mode]
        if first is Phase.DECODE or not emits:
            return {first: number}
        return {first: number - 1, first.after_denoising: 1}

    def steps_per_block(self, settings: ModeSettings) -> int | None:
        """See `Commit`. Drafts that need no confidence are all there after one forward; another verifies them."""
        if settings.mode is Mode.AUTOREGRESSIVE or settings.block_length == 1:
            return 1
        return 2 if settings.mode is Mode.SELF_SPECULATION and settings.threshold == 0 else None

    def first_block(self, state: RequestState, tokens: list[int], num_prompt: int) -> FirstBlock | None:
        """Return the block that a resumed request had begun; a new one starts with what the prefill predicts."""
        num_output = len(tokens) - num_prompt
        if state.current.mode is not Mode.DIFFUSION or not num_output:
            return None
        block_length = state.current.block_length
        num_emitted = (num_output - 1) % block_length + 1
        start = len(tokens) - num_emitted
        # Behind a whole block comes the first token of the next, which the prefill predicts.
        return None if num_emitted == block_length else FirstBlock(start, tokens[start:], 1)


def skip_encoded(rows: Rows, num_emitted: torch.Tensor, mask_token_id: int) -> tuple[Rows, torch.Tensor]:
    """Skip the tokens that the EXTEND call has encoded; see `Commit.skip_emitted`.

    What is emitted has KV by then, so the row goes on with the first token that is not.
    """
    columns = rows.columns + num_emitted[:, None]
    shifted = rows.tokens.gather(1, columns.clamp(max=rows.width - 1))
    new_len = rows.new_len - num_emitted.to(rows.new_len.dtype)
    tokens = torch.where(rows.columns < new_len[:, None], shifted, mask_token_id)
    return rows.replace(tokens=tokens, new_len=new_len, num_emitted=torch.ones_like(rows.num_emitted)), tokens[:, 0]


def _verified_lens(rows: Rows, ids: torch.Tensor) -> torch.Tensor:
    """Return the acceptance length [B]: one more than the drafted tokens that the model itself would have chosen."""
    agrees = (rows.tokens[:, 1:] == ids[:, :-1]) & (rows.columns[:, 1:] < rows.new_len[:, None])
    return accepted_lens(agrees)


def _committed_tokens(rows: Rows, ids: torch.Tensor) -> torch.Tensor:
    """Return the block's tokens after the pending one, then the prediction that follows the block [B, W]."""
    tokens = rows.tokens.roll(-1, dims=1)
    last = (rows.new_len.long() - 1)[:, None]
    return tokens.scatter(1, last, ids.gather(1, last))


def _committed_lens(rows: Rows) -> torch.Tensor:
    """Return how many tokens a commit emits [B]: all, or up to and including a stop id (masks may stand behind it)."""
    stop = first_stop(rows, rows.tokens)
    stops = (stop > 0) & (stop < rows.width)
    return torch.where(stops, stop, rows.new_len.long())
