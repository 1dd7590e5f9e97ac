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
from dlm_kernels.block_attention import Visible

from dlm_serve.decoding import one_forward
from dlm_serve.decoding.attention_spec import AttentionSpec
from dlm_serve.decoding.commit.base import Commit
from dlm_serve.decoding.decode_plan import ModeSettings
from dlm_serve.decoding.denoise import denoise, first_stop, is_denoising
from dlm_serve.decoding.modes import FIRST_PHASE, Mode, Phase
from dlm_serve.decoding.one_forward import LONGEST_CHAIN, GroupForm, lay_out, plan_groups
from dlm_serve.decoding.prompt_mask import PromptMask
from dlm_serve.decoding.request_state import RequestState
from dlm_serve.decoding.rows import RowOptions, Rows
from dlm_serve.decoding.step_output import StepOutput
from dlm_serve.decoding.token_choice import Prediction, accepted_lens


@dataclass(frozen=True)
class CausalCommit(Commit):
    """Commits a block by a causal forward over it."""

    prompt_mask: PromptMask = PromptMask.CAUSAL
    group_form: GroupForm = GroupForm.MASKS
    decodes_tokens: ClassVar[bool] = True
    scores_tokens: ClassVar[bool] = True

    def attention_spec(self, rows: Rows, committed_lens: torch.Tensor, mask_token_id: int) -> AttentionSpec:
        """See `Commit`: denoising rows are bidirectional and predict their own positions, others are causal.

        Those that speculate in one forward are a chain and groups. On a GPU kernels do it.
        """
        if rows.tokens.is_cuda:
            return self._spec_by_kernels(rows, committed_lens, mask_token_id)
        spec, speculating = self._spec_in_turn(rows, committed_lens), rows.phase == Phase.SPECULATE
        if not speculating.any():
            return spec
        return self._spec_of_groups(rows, committed_lens, mask_token_id).where(speculating, spec)

    def _spec_by_kernels(self, rows: Rows, committed_lens: torch.Tensor, mask_token_id: int) -> AttentionSpec:
        from dlm_kernels.one_forward import layout

        starts, copies = rows.starts(committed_lens), self.group_form.num_copies
        found = layout.lay_out(rows, starts, LONGEST_CHAIN, copies, mask_token_id)
        return AttentionSpec(
            prefix_lens=starts,
            tokens=found.tokens,
            positions=found.positions,
            kept=found.kept,
            visible=Visible(found.prefix, found.lo, found.hi),
            shift=found.shift,
            lora_on=found.lora_on,
            anchors=found.anchors,
        )

    def _spec_of_groups(self, rows: Rows, committed_lens: torch.Tensor, mask_token_id: int) -> AttentionSpec:
        """Return the spec of rows that speculate in one forward."""
        starts, plan = rows.starts(committed_lens), plan_groups(rows, mask_token_id, self.group_form.num_copies)
        layout = lay_out(rows, plan, self.group_form, mask_token_id)
        return AttentionSpec(
            prefix_lens=starts,
            tokens=layout.tokens,
            positions=starts[:, None] + layout.offsets,
            kept=layout.is_main,
            visible=Visible(layout.prefix, layout.lo, layout.hi),
            shift=(layout.is_main | layout.is_second).long(),
            lora_on=layout.is_noisy,
            anchors=layout.anchors,
        )

    def _spec_in_turn(self, rows: Rows, committed_lens: torch.Tensor) -> AttentionSpec:
        """Return the spec of rows whose tokens are a single block."""
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
        tokens = self.emitted_tokens(rows, prediction.ids)
        lens = torch.where(verified, _verified_lens(rows, prediction.ids), _committed_lens(rows))
        pending = tokens.gather(1, (lens.long() - 1)[:, None]).squeeze(1)

        denoising = is_denoising(rows.phase)
        denoised = denoise(rows, prediction, mask_token_id, num_masks=rows.block_length - 1)
        after = denoised.where(denoising, rows.start_block(pending, mask_token_id))
        return after, StepOutput(tokens, torch.where(denoising, 0, lens).to(torch.int32))

    def emitted_tokens(self, rows: Rows, ids: torch.Tensor) -> torch.Tensor:
        """See `Commit`: a commit emits the tokens that it encodes, and one behind them."""
        return torch.where((rows.phase == Phase.COMMIT)[:, None], _committed_tokens(rows, ids), ids)

    def advance_(
        self, table: Rows, indices: torch.Tensor, anchors: torch.Tensor, prediction: Prediction, mask_token_id: int
    ) -> StepOutput:
        """See `Commit`. On a GPU a kernel does it for each kind of row."""
        if indices.is_cuda:
            return _advance_by_kernels(table, indices, anchors, prediction, mask_token_id)
        rows = table.gather(indices, prediction.ids.shape[1])
        after, output = self.advance(rows, prediction, mask_token_id)
        speculating = rows.phase == Phase.SPECULATE
        if speculating.any():
            speculated, found = one_forward.advance(rows, anchors, prediction, mask_token_id)
            after, output = speculated.where(speculating, after), found.where(speculating, output)
        table.scatter_(indices, after)
        return StepOutput(output.tokens[:, : table.width], output.lens)

    def row_options(self, settings: ModeSettings, seed: int, stop_ids: Sequence[int], vocab_size: int) -> RowOptions:
        """See `Commit`. A block of one token is its pending token: nothing to denoise."""
        options = super().row_options(settings, seed, stop_ids, vocab_size)
        if settings.budget is not None:
            longest = min(settings.block_length, LONGEST_CHAIN)
            return replace(options, first_phase=Phase.SPECULATE, block_length=longest)
        return (
            replace(options, first_phase=options.first_phase.after_denoising) if settings.block_length == 1 else options
        )

    def phases_of(self, settings: ModeSettings, number: int, is_settled: bool, emits: bool) -> dict[Phase, int]:
        """See `Commit`: what emits is a commit or a verification."""
        if settings.budget is not None:
            return {Phase.SPECULATE: number}
        first = FIRST_PHASE[settings.mode]
        if first is Phase.DECODE or not emits:
            return {first: number}
        return {first: number - 1, first.after_denoising: 1}

    def steps_per_block(self, settings: ModeSettings) -> int | None:
        """See `Commit`. Drafts that need no confidence are all there after one forward; another verifies them."""
        if settings.mode is Mode.AUTOREGRESSIVE or settings.block_length == 1 or settings.budget is not None:
            return 1
        return 2 if settings.mode is Mode.SELF_SPECULATION and settings.threshold == 0 else None

    def known_start(self, state: RequestState, tokens: list[int], num_prompt: int) -> list[int] | None:
        """Return the pending token of a block that was not committed when its request was retracted.

        Other blocks begin with what the prefill predicts. It predicts what stands behind that pending token, too, but
        causally, and not as denoising finds it.
        """
        is_resumed = len(tokens) > num_prompt
        return tokens[-1:] if state.current.mode is Mode.DIFFUSION and is_resumed else None

    def is_private(self, state: RequestState, is_resumed: bool) -> bool:
        """See `Commit`: the commit of a block writes the KV of a pending token that was encoded already."""
        return state.current.mode is Mode.DIFFUSION and is_resumed


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


def _advance_by_kernels(
    table: Rows, indices: torch.Tensor, anchors: torch.Tensor, prediction: Prediction, mask_token_id: int
) -> StepOutput:
    from dlm_kernels.block_advance import triton as blocks
    from dlm_kernels.one_forward import advance as groups

    predicted = prediction.ids, prediction.confidence
    emitted = blocks.advance_(table, indices, *predicted, prediction.entropy, mask_token_id)
    groups.advance_(table, indices, anchors, *predicted, prediction.second_ids, mask_token_id, emitted)
    return StepOutput(*emitted)
