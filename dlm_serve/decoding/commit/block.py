"""Commit blocks as they were denoised: bidirectional inside, each starting from masks.

Semantics: `generate_with_prefix_cache_block_diff` of Efficient-DLM's authors, and the block KV cache of BD3-LM. The
forward that settles a block emits it. The next forward runs over the block once more and keeps its KV; it predicts
nothing, so a request that ends with the block does without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from dlm_serve.decoding.attention_spec import AttentionSpec
from dlm_serve.decoding.commit.base import Commit
from dlm_serve.decoding.decode_plan import ModeSettings
from dlm_serve.decoding.denoise import BlockAlgorithm, denoise, first_stop, is_denoising
from dlm_serve.decoding.modes import Phase
from dlm_serve.decoding.prompt_mask import PromptMask
from dlm_serve.decoding.prompt_spans import free_ends, grid_ends
from dlm_serve.decoding.request_state import RequestState
from dlm_serve.decoding.rows import RowOptions, Rows
from dlm_serve.decoding.step_output import StepOutput
from dlm_serve.decoding.token_choice import Prediction


@dataclass(frozen=True)
class BlockCommit(Commit):
    """Commits a block by a forward that is bidirectional inside it."""

    prompt_mask: PromptMask
    on_grid: bool = False
    """See `Commit`; otherwise the first block starts where the prompt ends."""
    stops_in_blocks: bool = True
    """Whether a block is settled as soon as all tokens up to a stop id are; otherwise it always runs whole."""
    decodes_tokens: ClassVar[bool] = False

    def attention_spec(self, rows: Rows, committed_lens: torch.Tensor, mask_token_id: int) -> AttentionSpec:
        """See `Commit`: all rows are bidirectional and predict their own positions."""
        denoising = is_denoising(rows.phase)
        return AttentionSpec.of(
            rows,
            committed_lens,
            causal_len=torch.zeros_like(rows.new_len),
            kept_len=torch.where(denoising, 0, rows.new_len),
            shift=torch.zeros_like(rows.phase, dtype=torch.int64),
            lora_on=torch.zeros_like(denoising),
        )

    def advance(self, rows: Rows, prediction: Prediction, mask_token_id: int) -> tuple[Rows, StepOutput]:
        """See `Commit`."""
        denoising = is_denoising(rows.phase)
        denoised = denoise(rows, prediction, mask_token_id, rows.block_length, first_column=rows.num_emitted)
        settled = denoising & (denoised.phase == Phase.COMMIT)
        after, output = _emit(denoised)
        after = after.where(settled, denoised).where(denoising, rows.start_masked_block(mask_token_id))
        return after, StepOutput(output.tokens, torch.where(settled, output.lens, 0))

    def row_options(self, settings: ModeSettings, seed: int, stop_ids: Sequence[int], vocab_size: int) -> RowOptions:
        """See `Commit`."""
        options = super().row_options(settings, seed, stop_ids if self.stops_in_blocks else (), vocab_size)
        return replace(options, is_shuffled=settings.algorithm == BlockAlgorithm.FIRST_HITTING)

    def phases_of(self, settings: ModeSettings, number: int, is_settled: bool, emits: bool) -> dict[Phase, int]:
        """See `Commit`: a settled block is committed by the next forward."""
        return {Phase.COMMIT: int(is_settled), Phase.DENOISE: number - is_settled}

    def usable_widths(self, block_size: int, widths: Sequence[int]) -> list[int]:
        """See `Commit`: blocks on a grid are all of `block_size`."""
        return [min(width for width in widths if width >= block_size)] if self.on_grid else sorted(widths)

    def span_ends(self, num_prompt: int, num_tokens: int, block_size: int, block_length: int) -> list[int]:
        """See `Commit`."""
        if self.on_grid:
            return grid_ends(num_tokens, block_length)
        return free_ends(self.prompt_mask, num_prompt, num_tokens, block_size, block_length)

    def known_start(self, state: RequestState, tokens: list[int], num_prompt: int) -> list[int]:
        """Return the end of a prompt that ends within a block of the grid. Answers consist of whole blocks."""
        origin = 0 if self.on_grid else num_prompt
        return tokens[len(tokens) - (len(tokens) - origin) % state.current.block_length :]

    def shareable_len(
        self, state: RequestState, num_prompt: int, num_tokens: int, num_encoded: int, block_size: int
    ) -> int:
        """See `Commit`.

        The block of the last token of an answer need not be committed, unless an EXTEND call encoded it. Off the grid,
        the blocks of an answer lie elsewhere than they would in a prompt.
        """
        if self.prompt_mask is not PromptMask.BLOCK_CAUSAL:
            return num_tokens
        last = max(num_encoded, num_tokens - 1) if self.on_grid else num_prompt
        return last - last % block_size

    def is_private(self, state: RequestState, is_resumed: bool) -> bool:
        """See `Commit`: off the grid, a resumed request encodes blocks of its answer."""
        return self.prompt_mask is PromptMask.BLOCK_CAUSAL and not self.on_grid and is_resumed


def _emit(rows: Rows) -> tuple[Rows, StepOutput]:
    """Emit the tokens of each block up to its end, or up to and including a stop id."""
    stop = first_stop(rows, rows.tokens, rows.num_emitted)
    end = torch.minimum(stop + 1, rows.new_len).to(torch.int32)
    columns = (rows.columns + rows.num_emitted[:, None]).clamp(max=rows.width - 1)
    return rows.replace(num_emitted=end), StepOutput(rows.tokens.gather(1, columns), end - rows.num_emitted)
