"""An EXTEND call: SGLang's own prefill, and the rows of its requests set up to decode.

It runs no other forward, so that requests that decode wait for a prompt alone. Where the prefill does not predict a
request's next token it gives none: the block is denoised by decode steps like any other. The newest token, which
SGLang does not count as committed, is then the last that was encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from dlm_serve.decoding import Choice, Commit, Rows
from dlm_serve.sglang.engine.inputs import StepState
from dlm_serve.sglang.engine.logit_rows import begin_rules, has_rules
from dlm_serve.sglang.engine.prompt_attention import SpanBackend, spans_of
from dlm_serve.sglang.engine.requests import NO_TOKEN, known_start_of, row_options_of, state_of
from dlm_serve.sglang.engine.to_device import to_device
from dlm_serve.sglang.protocols import BatchLike, ReqLike, WorkerLike


class ExtendStep:
    """Runs EXTEND calls."""

    def __init__(
        self,
        target_worker: WorkerLike,
        table: Rows,
        counts: torch.Tensor,
        commit: Commit,
        mask_token_id: int,
        block_size: int,
    ) -> None:
        """Set up what runs them; answers are counted in `counts` [R, V] int32, which has the rows of `table`."""
        self._target_worker = target_worker
        self._table = table
        self._counts = counts
        self._commit = commit
        self._mask_token_id = mask_token_id
        self._block_size = block_size

    def run(self, batch: BatchLike, first: Choice | None) -> Any:
        """Prefill SGLang's `batch`; return its GenerationBatchResult, with a token or NO_TOKEN for each request.

        Requests that may decode in several ways begin with the choice `first`, None being autoregressive.
        """
        for req in batch.reqs:
            if not req.output_ids:
                state_of(req).start_as(first)
            is_resumed = bool(req.output_ids)
            req.skip_radix_cache_insert |= self._commit.is_private(state_of(req), is_resumed)
        is_known, rows = self._known_rows(batch.reqs)
        batch.sampling_info.sampling_seed = rows.seed
        with self._prompt_spans(batch):
            result, predicted = self._predict(batch, ~is_known)
        rows = rows.where(is_known, rows.start_block(predicted, self._mask_token_id))
        self._table.scatter_(batch.req_pool_indices.long(), rows)
        result.next_token_ids = torch.where(is_known, NO_TOKEN, predicted)
        # SGLang's host goes on counting the last token among those with KV, which it has; rows count from here.
        result.new_seq_lens = batch.seq_lens - is_known.to(batch.seq_lens.dtype)
        result.next_draft_input = StepState(rows.tokens[:, 0], result.new_seq_lens)
        return result

    def _predict(self, batch: BatchLike, is_answer: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Return SGLang's result, and the token [B] int64 that it predicts behind each request.

        `is_answer` [B] bool says which of them are part of an answer, and count as that.
        """
        ruled = [row for row, req in enumerate(batch.reqs) if has_rules(req)]
        if not ruled:
            result = self._target_worker.forward_batch_generation(batch)
            return result, result.next_token_ids.to(torch.int64)
        device = self._table.tokens.device.type
        rows = to_device(ruled, device)
        rules = begin_rules([batch.reqs[row] for row in ruled], batch.req_pool_indices.long()[rows], self._counts)
        with self._target_worker.model_runner.sampler.ruled(rows, rules):
            result = self._target_worker.forward_batch_generation(batch)
        predicted = result.next_token_ids.to(torch.int64)
        rules.count_(predicted[rows, None], is_answer[rows].int())
        return result, predicted

    def _known_rows(self, reqs: Sequence[ReqLike]) -> tuple[torch.Tensor, Rows]:
        """Return which blocks begin with tokens that are known [B] bool, and all rows as if they did."""
        rows = Rows.of([row_options_of(req, self._commit) for req in reqs], self._table.width)
        starts = [known_start_of(req, self._commit) for req in reqs]
        tokens = torch.full_like(rows.tokens, self._mask_token_id)
        for row, start in enumerate(starts):
            tokens[row, : len(start or ())] = torch.tensor(start or ())
        num_known = torch.tensor([len(start or ()) for start in starts], dtype=torch.int32)
        device = self._table.tokens.device
        is_known = torch.tensor([start is not None for start in starts]).to(device, non_blocking=True)
        return is_known, rows.with_block(tokens, num_known).to(device)

    def _prompt_spans(self, batch: BatchLike) -> AbstractContextManager[None]:
        """Return a context in which the prompts of an EXTEND call see themselves as the family's do."""
        backend: SpanBackend | None = self._target_worker.model_runner.attn_backend.span_backend
        if backend is None:
            return nullcontext()
        return backend.cut_into(spans_of(batch, self._commit, self._block_size))
