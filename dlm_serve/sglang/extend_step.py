"""An EXTEND call: SGLang's own prefill, and the rows of its requests set up behind their first token."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch

from dlm_serve.decoding import Choice, Commit, FirstBlock, Rows
from dlm_serve.sglang.inputs import StepState
from dlm_serve.sglang.planned_step import to_device
from dlm_serve.sglang.prompt_attention import SpanBackend, spans_of
from dlm_serve.sglang.protocols import BatchLike, ReqLike, WorkerLike
from dlm_serve.sglang.requests import first_block_of, row_options_of, state_of


class StartBlocks(Protocol):
    """Starts the blocks of requests whose next token the prefill does not predict."""

    def start(self, reqs: Sequence[ReqLike], indices: torch.Tensor, blocks: Sequence[FirstBlock]) -> torch.Tensor:
        """Return the next token of each of `reqs` [N] int64; leave the rest of their blocks in the table."""


class ExtendStep:
    """Runs EXTEND calls."""

    def __init__(
        self,
        target_worker: WorkerLike,
        table: Rows,
        commit: Commit,
        mask_token_id: int,
        block_size: int,
        start: StartBlocks,
    ) -> None:
        self._target_worker = target_worker
        self._table = table
        self._commit = commit
        self._mask_token_id = mask_token_id
        self._block_size = block_size
        self._start = start

    def run(self, batch: BatchLike, first: Choice | None) -> Any:
        """Prefill SGLang's `batch`; return its GenerationBatchResult, with the first token of each request.

        Requests that may decode in several ways begin with the choice `first`, None being autoregressive.
        """
        for req in batch.reqs:
            if not req.output_ids:
                state_of(req).start_as(first)
        table, device = self._table, self._table.tokens.device
        rows = Rows.of([row_options_of(req, self._commit) for req in batch.reqs], table.width).to(device)
        batch.sampling_info.sampling_seed = rows.seed
        for req in batch.reqs:
            req.skip_radix_cache_insert |= self._commit.is_private(is_resumed=bool(req.output_ids))
        with self._prompt_spans(batch):
            result = self._target_worker.forward_batch_generation(batch)
        pending = result.next_token_ids.to(torch.int64)
        indices = batch.req_pool_indices.long()
        table.scatter_(indices, rows.start_block(pending, self._mask_token_id))
        blocks = {i: block for i, req in enumerate(batch.reqs) if (block := first_block_of(req, self._commit))}
        if blocks:
            at = to_device(tuple(blocks), device.type)
            reqs = [batch.reqs[i] for i in blocks]
            pending[at] = self._start.start(reqs, indices[at], list(blocks.values()))
        result.next_token_ids = pending
        result.new_seq_lens = batch.seq_lens
        result.next_draft_input = StepState(pending, batch.seq_lens)
        return result

    def _prompt_spans(self, batch: BatchLike) -> AbstractContextManager[None]:
        """Return a context in which the prompts of an EXTEND call see themselves as the family's do."""
        backend: SpanBackend | None = self._target_worker.model_runner.attn_backend.span_backend
        if backend is None:
            return nullcontext()
        return backend.cut_into(spans_of(batch, self._commit, self._block_size))
