"""A decode step of rows in any mix of modes: up to three forwards, each over the rows that take it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.managers.utils import GenerationBatchResult

from dlm_serve.decoding import Phase, StepOutput
from dlm_serve.sglang.engine.block_step import BlockForward, Step
from dlm_serve.sglang.engine.decode_forward import DecodeForward
from dlm_serve.sglang.engine.draft_windows import DraftWindows
from dlm_serve.sglang.engine.inputs import StepState
from dlm_serve.sglang.engine.logit_step import Barrier, GroupLogits, LogitStep, StepContext
from dlm_serve.sglang.engine.logprobs import StepLogprobs
from dlm_serve.sglang.engine.planned_step import PlannedStep, RowGroup
from dlm_serve.sglang.protocols import BatchLike


@dataclass(frozen=True)
class _Inputs:
    """What the rows of a step have in common."""

    batch: BatchLike
    indices: torch.Tensor  # [B] int64, rows of the table and of SGLang's slot table
    committed_lens: torch.Tensor  # [B] int64
    context: StepContext


@dataclass(frozen=True)
class _Part:
    """What the rows of one group emit."""

    output: StepOutput
    is_captured: bool


class DecodeStep:
    """Runs decode steps as they are planned."""

    def __init__(
        self, step: Step, decode: DecodeForward, windows: DraftWindows, logits: LogitStep, mask_token_id: int
    ) -> None:
        self._step = step
        self._decode = decode
        self._windows = windows
        self._logits = logits
        self._table = logits.table
        self._mask_token_id = mask_token_id

    def run(self, batch: BatchLike, planned: PlannedStep, number: int, barrier: Barrier) -> Any:
        """Run the engine's step `number`, of SGLang's `batch`; return its GenerationBatchResult."""
        indices = batch.req_pool_indices.long()
        if planned.offer is not None:
            self._table.offer_(indices[planned.offer.rows], planned.offer.settings, self._mask_token_id)
        batch.sampling_info.sampling_seed = self._table.seed[indices]
        context = StepContext(number, StepLogprobs(batch) if batch.return_logprob else None, barrier)
        inputs = _Inputs(batch, indices, batch.seq_lens.to(torch.int64), context)
        parts: list[tuple[RowGroup, _Part]] = []
        if planned.windows is not None:
            parts.append((planned.windows, self._run_windows(inputs, planned.windows)))
        if planned.block is not None:
            parts.append((planned.block, self._run_blocks(inputs, planned.block, planned)))
        if planned.decode is not None:
            parts.append((planned.decode, self._run_decode(inputs, planned.decode)))
        return self._result(inputs, parts)

    def _run_windows(self, inputs: _Inputs, group: RowGroup) -> _Part:
        indices, committed_lens = group.of(inputs.indices), group.of(inputs.committed_lens)
        output = self._windows.verify(group.states, indices, committed_lens)
        return _Part(output, is_captured=False)

    def _run_blocks(self, inputs: _Inputs, group: RowGroup, planned: PlannedStep) -> _Part:
        indices, committed_lens, width = group.of(inputs.indices), group.of(inputs.committed_lens), planned.plan.width
        asked = self._logits.begin(group, indices, committed_lens, width, inputs.context)
        forward = self._step.forward(indices, committed_lens, width)
        asked.of_block(forward.logits, forward.prediction)
        if planned.plan.padded_decode and inputs.batch.sampling_info.has_custom_logit_processor:
            self._sample_padded(inputs, forward, asked)
        output = forward.advance()
        asked.count(output)
        return _Part(output, forward.is_captured)

    def _sample_padded(self, inputs: _Inputs, forward: BlockForward, asked: GroupLogits) -> None:
        """Let SGLang's sampler choose the tokens of autoregressive rows in a block forward over all rows."""
        logits = forward.logits[:, 0].float()
        asked.of_tokens(logits)
        token_ids = self._decode.sample(inputs.batch, logits, inputs.committed_lens)
        is_decode = self._table.phase[inputs.indices] == Phase.DECODE
        first = forward.prediction.ids[:, 0]
        first.copy_(torch.where(is_decode, token_ids, first))

    def _run_decode(self, inputs: _Inputs, group: RowGroup) -> _Part:
        indices, committed_lens = group.of(inputs.indices), group.of(inputs.committed_lens)
        on_host = inputs.batch.seq_lens_cpu
        if on_host is not None and group.rows is not None:
            on_host = on_host[list(group.numbers)]
        asked = self._logits.begin(group, indices, committed_lens, 1, inputs.context)
        logits, is_captured = self._decode.logits(indices, committed_lens, on_host)
        asked.of_tokens(logits)
        token_ids = group.of(
            self._decode.sample(inputs.batch, self._spread(inputs, group, logits), inputs.committed_lens)
        )
        asked.note_tokens(logits, token_ids)
        output = self._decode.emit(indices, token_ids)
        asked.count(output)
        return _Part(output, is_captured)

    def _spread(self, inputs: _Inputs, group: RowGroup, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits of a group among those of all rows: SGLang samples a whole batch."""
        if group.rows is None:
            return logits
        return logits.new_zeros(len(inputs.indices), logits.shape[1]).index_copy_(0, group.rows, logits)

    def _result(self, inputs: _Inputs, parts: list[tuple[RowGroup, _Part]]) -> Any:
        """Merge what the groups emit into SGLang's result."""
        output = _merged(parts, len(inputs.indices))
        logits_output = LogitsProcessorOutput(next_token_logits=None)
        if inputs.context.logprobs is not None:
            inputs.context.logprobs.write_to(logits_output, output.tokens.shape[1])
        new_seq_lens = inputs.committed_lens + output.lens
        pending = self._table.tokens[inputs.indices, 0]
        return GenerationBatchResult(
            logits_output=logits_output,
            next_token_ids=output.tokens.reshape(-1),
            accept_lens=output.lens,
            new_seq_lens=new_seq_lens,
            next_draft_input=StepState(pending, new_seq_lens),
            speculative_num_draft_tokens=output.tokens.shape[1],
            # Counts emitted tokens, so that a step which emits none counts as that.
            num_non_draft_tokens_per_req=0,
            can_run_cuda_graph=all(part.is_captured for _, part in parts),
        )


def _merged(parts: list[tuple[RowGroup, _Part]], num_rows: int) -> StepOutput:
    """Return what all rows emit."""
    if len(parts) == 1:
        return parts[0][1].output
    width = max(part.output.tokens.shape[1] for _, part in parts)
    merged = StepOutput.empty(num_rows, width, parts[0][1].output.tokens.device)
    for group, part in parts:
        assert group.rows is not None  # there are several groups
        merged.put_(group.rows, part.output)
    return merged
