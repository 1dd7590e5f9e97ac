"""Autoregressive rows: SGLang's own decode forward, and its sampler."""

from __future__ import annotations

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from dlm_serve.decoding import Rows, StepOutput
from dlm_serve.sglang.protocols import BatchLike, WorkerLike


class DecodeForward:
    """Runs rows of one token each."""

    def __init__(self, target_worker: WorkerLike, table: Rows) -> None:
        self._target_worker = target_worker
        self._model_runner = target_worker.model_runner
        self._table = table

    def logits(
        self, indices: torch.Tensor, committed_lens: torch.Tensor, committed_lens_cpu: torch.Tensor | None
    ) -> tuple[torch.Tensor, bool]:
        """Return logits [B, V] behind the pending tokens of the rows at `indices` [B], and whether a graph ran it.

        `committed_lens` [B] int64, the same on the host where SGLang's attention backend needs it there.
        """
        runner = self._model_runner
        slot_table = runner.req_to_token_pool.req_to_token
        seq_lens_cpu = None if committed_lens_cpu is None else committed_lens_cpu + 1
        forward_batch = ForwardBatch(
            forward_mode=ForwardMode.DECODE,
            batch_size=indices.shape[0],
            input_ids=self._table.tokens[indices, 0],
            req_pool_indices=indices,
            seq_lens=committed_lens + 1,
            seq_lens_cpu=seq_lens_cpu,
            seq_lens_sum=None if seq_lens_cpu is None else int(seq_lens_cpu.sum()),
            orig_seq_lens=committed_lens + 1,
            out_cache_loc=slot_table[indices, committed_lens].long(),
            positions=committed_lens,
            spec_algorithm=SpeculativeAlgorithm.NONE,
            capture_hidden_mode=CaptureHiddenMode.NULL,
        )
        runner.kv_index_translator.bind_own_plan(forward_batch)
        result = self._target_worker.forward_batch_generation(batch=None, forward_batch=forward_batch, is_verify=True)
        if not result.can_run_cuda_graph:
            # A block graph of this very step may have said that the slot table may be written again.
            runner.shared_read_done_event = None
        return result.logits_output.next_token_logits, result.can_run_cuda_graph

    def sample(self, batch: BatchLike, logits: torch.Tensor, committed_lens: torch.Tensor) -> torch.Tensor:
        """Return the next token [B] int64 of every request of `batch` from `logits` [B, V] float32, as SGLang does."""
        output = LogitsProcessorOutput(next_token_logits=logits)
        token_ids: torch.Tensor = self._model_runner.sampler(output, batch.sampling_info, False, [], [], committed_lens)
        return token_ids.to(torch.int64)

    def emit(self, indices: torch.Tensor, token_ids: torch.Tensor) -> StepOutput:
        """Make the sampled `token_ids` [B] the pending tokens of the rows at `indices`, and emit them."""
        self._table.tokens[indices, 0] = token_ids
        return StepOutput(token_ids[:, None], torch.ones_like(token_ids, dtype=torch.int32))
