"""One step of rows in any mix of phases, as two programs that never wait for the device.

`forward` says what the model predicts for each row, `advance` what that does to the row. In between the
host may exchange predictions, for sampling and for what only autoregressive rows honour. All that changes
from step to step is read from tensors, so that a CUDA graph of each serves every mix of phases.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import torch
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from dlm_serve.decoding import Emission, Layout, Policy, Prediction, Rows, advance_, layout, predict
from dlm_serve.engine.inputs import BlockInput
from dlm_serve.kv.slots import read_slots, write_slots


class Step(Protocol):
    """What runs a step: `BlockStep`, or graphs of it."""

    def forward(
        self, indices: torch.Tensor, committed_lens: torch.Tensor, width: int
    ) -> tuple[torch.Tensor, Prediction]:
        """Logits [B, W, V] of the rows at `indices` [B] int64 behind their committed tokens, and the greedy prediction.

        W is at least `width`. Both are valid until the next call.
        """

    def advance(self, indices: torch.Tensor, prediction: Prediction) -> Emission:
        """Bring the rows at `indices`, those of the last `forward`, to where `prediction` takes them."""

    def is_captured(self, num_rows: int, width: int) -> bool:
        """Whether a CUDA graph runs such a step."""


class BlockStep:
    """The step, run eagerly over tensors of any batch size and width."""

    def __init__(self, model_runner: Any, table: Rows, mask_token_id: int, policy: Policy) -> None:
        self.table = table
        self.mask_token_id = mask_token_id
        self.policy = policy
        self._model_runner = model_runner

    def forward(
        self,
        indices: torch.Tensor,
        committed_lens: torch.Tensor,
        width: int,
        on_slots_read: Callable[[], None] | None = None,
    ) -> tuple[torch.Tensor, Prediction]:
        """See `Step`. `on_slots_read` is called when no later write to the slot table could misplace KV."""
        rows = self.table.gather(indices, width)
        return self.run(rows, indices, rows.starts(committed_lens), layout(rows, self.policy), on_slots_read)

    def run(
        self,
        rows: Rows,
        indices: torch.Tensor,
        starts: torch.Tensor,
        step: Layout,
        on_slots_read: Callable[[], None] | None = None,
    ) -> tuple[torch.Tensor, Prediction]:
        """The same for any `rows` of the requests at `indices`, laid out as `step` says from positions `starts` [B]."""
        runner, width = self._model_runner, rows.width
        slot_table = runner.req_to_token_pool.req_to_token
        slots = write_slots(slot_table, indices, starts, step.kept_len, width)
        committed = read_slots(slot_table, indices, starts, runner.model.attention_window)
        if on_slots_read is not None:
            on_slots_read()
        columns = torch.arange(width, device=indices.device)
        batch = ForwardBatch(
            forward_mode=ForwardMode.TARGET_VERIFY,
            batch_size=indices.shape[0],
            input_ids=rows.tokens.reshape(-1),
            req_pool_indices=indices,
            seq_lens=starts,
            out_cache_loc=slots.reshape(-1),
            seq_lens_sum=None,
            positions=(starts[:, None] + columns).reshape(-1),
            spec_algorithm=SpeculativeAlgorithm.NONE,
            spec_info=BlockInput(width, step, committed),
            capture_hidden_mode=CaptureHiddenMode.NULL,
        )
        adapter = runner.model.draft_adapter
        switched = adapter.switched(step.lora_on.repeat_interleave(width)) if adapter else contextlib.nullcontext()
        with forward_context(ForwardContext(attn_backend=runner.attn_backend), forward_batch=batch), switched:
            output = runner.model.forward(batch.input_ids, batch.positions, batch)
        logits = output.next_token_logits.unflatten(0, (indices.shape[0], width))
        return logits, predict(logits, self.mask_token_id, mask_in_denominator=self.policy.mask_in_denominator)

    def is_captured(self, num_rows: int, width: int) -> bool:
        """See `Step`."""
        return False

    def advance(self, indices: torch.Tensor, prediction: Prediction) -> Emission:
        """See `Step`."""
        return advance_(self.table, indices, prediction, self.mask_token_id, self.policy)
