"""A block forward over rows in any mix of phases, and the advance of the rows behind it.

Neither waits for the device. In between predictions may be overwritten with what requests ask of their logits.
All that changes from step to step is read from tensors, so that a CUDA graph of each serves every mix of phases.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from dlm_serve.decoding import AttentionSpec, Commit, Prediction, Rows, StepOutput, TokenChoice
from dlm_serve.decoding.kv_slots import read_slots, write_slots
from dlm_serve.sglang.engine.inputs import BlockInput
from dlm_serve.sglang.protocols import ModelRunnerLike


@dataclass(frozen=True)
class BlockForward:
    """What a block forward says about B rows of W tokens. Its tensors are valid until the next forward."""

    logits: torch.Tensor  # [B, W, V] of the model's precision
    prediction: Prediction  # may be overwritten in place
    is_captured: bool
    """Whether a CUDA graph ran it."""
    advance: Callable[[], StepOutput]
    """Brings the rows to where `prediction` takes them; call it once."""


class Step(Protocol):
    """What runs block forwards: `BlockStep`, or graphs of it."""

    def forward(self, indices: torch.Tensor, committed_lens: torch.Tensor, width: int) -> BlockForward:
        """Run the rows at `indices` [B] int64 behind their committed tokens, with W at least `width`."""

    def captured_rows(self, width: int) -> int:
        """Return up to how many rows of `width` tokens a CUDA graph runs; 0 if none does."""


class BlockStep:
    """Runs block forwards eagerly, of any batch size and width."""

    def __init__(self, model_runner: ModelRunnerLike, table: Rows, commit: Commit, choice: TokenChoice) -> None:
        self.table = table
        self.commit = commit
        self.choice = choice
        self._model_runner = model_runner

    def forward(self, indices: torch.Tensor, committed_lens: torch.Tensor, width: int) -> BlockForward:
        """See `Step`."""
        # No graph says when the slot table is read: the scheduler waits for the whole forward.
        self._model_runner.shared_read_done_event = None
        rows = self.table.gather(indices, width)
        spec = self.spec_of(rows, committed_lens)
        logits, prediction = self.run(rows, indices, spec)
        return BlockForward(logits, prediction, False, lambda: self.advance(indices, spec.anchors, prediction))

    def captured_rows(self, width: int) -> int:
        """See `Step`."""
        return 0

    def spec_of(self, rows: Rows, committed_lens: torch.Tensor) -> AttentionSpec:
        """Return how `rows` enter the next forward behind `committed_lens` [B] tokens."""
        return self.commit.attention_spec(rows, committed_lens, self.choice.mask_token_id)

    def run(
        self,
        rows: Rows,
        indices: torch.Tensor,
        spec: AttentionSpec,
        on_slots_read: Callable[[], None] | None = None,
    ) -> tuple[torch.Tensor, Prediction]:
        """Run `rows` of the requests at `indices` as `spec` says; return logits [B, W, V] and what they predict.

        `on_slots_read` is called when no later write to the slot table could misplace KV.
        """
        runner, width = self._model_runner, rows.width
        slot_table = runner.req_to_token_pool.req_to_token
        slots = write_slots(slot_table, indices, spec.positions, spec.kept)
        committed = read_slots(slot_table, indices, spec.prefix_lens, runner.model.attention_window)
        if on_slots_read is not None:
            on_slots_read()
        batch = ForwardBatch(
            forward_mode=ForwardMode.TARGET_VERIFY,
            batch_size=indices.shape[0],
            input_ids=spec.tokens.reshape(-1),
            req_pool_indices=indices,
            seq_lens=spec.prefix_lens,
            out_cache_loc=slots.reshape(-1),
            seq_lens_sum=None,
            positions=spec.positions.reshape(-1),
            spec_algorithm=SpeculativeAlgorithm.NONE,
            spec_info=BlockInput(width, spec, committed),
            capture_hidden_mode=CaptureHiddenMode.NULL,
        )
        adapter = runner.model.draft_adapter
        switched = adapter.switched(spec.lora_on.reshape(-1)) if adapter else contextlib.nullcontext()
        with forward_context(ForwardContext(attn_backend=runner.attn_backend), forward_batch=batch), switched:
            output = runner.model.forward(batch.input_ids, batch.positions, batch)
        logits = output.next_token_logits.unflatten(0, (indices.shape[0], width))
        return logits, self.choice.predict(logits, spec.predicted_positions, rows)

    def advance(self, indices: torch.Tensor, anchors: torch.Tensor, prediction: Prediction) -> StepOutput:
        """Bring the rows at `indices` [B] to where `prediction` takes them; return what they emit.

        `anchors` [B, W] are those of the spec with which they entered the forward.
        """
        return self.commit.advance_(self.table, indices, anchors, prediction, self.choice.mask_token_id)
