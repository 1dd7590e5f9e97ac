"""The decode worker: three modes over one KV cache, inside SGLang's speculative-worker seam.

Between steps each request has C tokens whose KV is committed and one pending token, emitted but not in
the cache, which is the first of its next block. A step runs one forward over one row per request. Rows
of all phases share it; a step may emit nothing for a row.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode
from sglang.srt.speculative.base_spec_worker import BaseSpecWorker
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from dlm_serve.decoding import (
    Emission,
    Layout,
    Mode,
    Phase,
    Prediction,
    Rows,
    Sampling,
    advance,
    carry,
    layout,
    predict,
)
from dlm_serve.engine.inputs import BlockInput, StepState
from dlm_serve.engine.requests import num_known_of_block, record_of, settings_of
from dlm_serve.engine.sampler import DlmSampler, sampling_of
from dlm_serve.engine.serving import load_serving
from dlm_serve.kv.slots import write_slots

Publish = Callable[[torch.Tensor], None]


class DlmWorker(BaseSpecWorker):  # type: ignore[misc]  # the base is untyped
    """Runs every decode step of a diffusion language model; prefill is SGLang's own."""

    def __init__(self, server_args: Any, gpu_id: int, nccl_port: int, target_worker: Any, **_: Any) -> None:
        super().__init__()
        self._target_worker = target_worker
        self._draft_worker = None
        serving = load_serving(server_args)
        self.model_runner = target_worker.model_runner
        self.device = target_worker.device
        self.mask_token_id = serving.checkpoint.mask_token_id
        self.max_width = serving.config.routing.max_width
        # Read by SGLang, which sizes reserves and metrics with them.
        self.speculative_num_draft_tokens = self.max_width
        self.speculative_num_steps = 1
        self.topk = 1
        self._table: Rows | None = None

        self.model_runner.sampler = DlmSampler(self.mask_token_id)
        model = self.model_runner.model
        # A request's last block reaches past the context, and so does the step that SGLang overlaps with it.
        model.extend_rotary_cache(self.model_runner.model_config.context_len + 2 * self.max_width)
        adapter_folder = serving.checkpoint.draft_adapter(serving.config.lora.draft_adapter)
        if adapter_folder is not None:
            model.load_draft_adapter(adapter_folder)

    @property
    def draft_worker(self) -> None:
        """Drafts come from the target model itself."""
        return None

    def __getattr__(self, name: str) -> Any:
        if name == "_target_worker":
            raise AttributeError(name)
        return getattr(self._target_worker, name)

    @property
    def table(self) -> Rows:
        """The decode state of all requests, by `req_pool_idx`; row 0 is padding."""
        if self._table is None:
            num_rows = self.model_runner.req_to_token_pool.req_to_token.shape[0]
            self._table = Rows.zeros(num_rows, self.max_width, self.device)
        return self._table

    def forward_batch_generation(self, batch: Any, on_publish: Publish | None = None, **_: Any) -> Any:
        """Run one EXTEND or one decode step of SGLang's `batch`."""
        if batch.forward_mode.is_extend():
            result = self._extend(batch)
        elif all(record_of(req).plan.mode is Mode.AUTOREGRESSIVE for req in batch.reqs):
            result = self._decode(batch)
        else:
            result = self._block_step(batch)
        if on_publish is not None:
            on_publish(result.new_seq_lens)
        return result

    def _extend(self, batch: Any) -> Any:
        """Prefill, and set up the requests' rows behind their first token."""
        rows = Rows.of([settings_of(req) for req in batch.reqs], self.max_width).to(self.device)
        batch.sampling_info.sampling_seed = rows.seed
        sampling = sampling_of(batch.sampling_info)
        result = self._target_worker.forward_batch_generation(batch)
        pending = result.next_token_ids.to(torch.int64)
        indices = batch.req_pool_indices.long()
        self.table.scatter_(indices, rows.start_block(pending, self.mask_token_id))
        for i, req in enumerate(batch.reqs):
            num_known = num_known_of_block(req)
            if num_known is not None:
                one = slice(i, i + 1)
                known, pending[one] = self._resume_block(batch, req, num_known, one, sampling.select(one))
                self.table.scatter_(indices[one], known)
        result.next_token_ids = pending
        result.new_seq_lens = batch.seq_lens
        result.next_draft_input = StepState(pending, batch.seq_lens)
        return result

    def _resume_block(
        self, batch: Any, req: Any, num_known: int, one: slice, sampling: Sampling
    ) -> tuple[Rows, torch.Tensor]:
        """Refine again the block that a retraction interrupted; returns its row and its next token [1].

        Nothing but the emitted tokens survives a retraction, and the next token of a diffusion request
        is not the model's causal prediction. The block starts over from its first token and so ends the
        same. It writes no KV: the tokens it repeats are committed by this very EXTEND.
        """
        indices, prefix_lens = batch.req_pool_indices[one], batch.seq_lens[one].long() - 1 - num_known
        rows = self.table.gather(indices.long(), record_of(req).plan.block_length)
        first = torch.tensor([req.output_ids[-1 - num_known]], device=self.device)
        rows = rows.start_block(first, self.mask_token_id)
        while rows.phase.item() == Phase.DENOISE:
            step = layout(rows)
            logits = self._forward_rows(batch, rows, step, indices, prefix_lens)
            rows, _ = advance(rows, self._predict(rows, logits, step, prefix_lens, sampling), self.mask_token_id)
            record_of(req).extend_forwards += 1
        return carry(rows, torch.tensor([num_known], device=self.device), self.mask_token_id)

    def _decode(self, batch: Any) -> Any:
        """One token for each request, when all are autoregressive: SGLang's own decode forward."""
        committed = batch.seq_lens.to(torch.int64)
        indices = batch.req_pool_indices.long()
        batch.sampling_info.sampling_seed = self.table.seed[indices]
        plain = copy.copy(batch)
        plain.spec_algorithm, plain.spec_info = SpeculativeAlgorithm.NONE, None
        plain.forward_mode = ForwardMode.DECODE
        plain.input_ids = self.table.tokens[indices, 0]
        plain.out_cache_loc = self.model_runner.req_to_token_pool.req_to_token[indices, committed].long()
        plain.seq_lens = committed + 1
        plain.seq_lens_cpu = None if batch.seq_lens_cpu is None else batch.seq_lens_cpu + 1
        plain.seq_lens_sum = None
        result = self._target_worker.forward_batch_generation(plain)
        token_ids = result.next_token_ids.to(torch.int64)
        self.table.tokens[indices, 0] = token_ids
        emission = Emission(token_ids[:, None], torch.ones_like(token_ids, dtype=torch.int32))
        self._widen_logprobs(batch, result.logits_output)
        return self._result(batch, result.logits_output, emission, token_ids, result.can_run_cuda_graph)

    def _block_step(self, batch: Any) -> Any:
        """One forward over one row per request, whatever their phases."""
        plans = [record_of(req).plan for req in batch.reqs]
        indices = batch.req_pool_indices.long()
        rows = self.table.gather(indices, max(plan.block_length for plan in plans))
        committed = batch.seq_lens.to(torch.int64)
        batch.sampling_info.sampling_seed = rows.seed
        step = layout(rows)
        logits = self._forward_rows(batch, rows, step, batch.req_pool_indices, committed)
        prediction = self._predict(rows, logits, step, committed, sampling_of(batch.sampling_info))
        output = LogitsProcessorOutput(next_token_logits=None)
        if any(plan.mode is Mode.AUTOREGRESSIVE for plan in plans):
            output, token_ids = self._sample_first(batch, logits, committed)
            prediction.ids[:, 0] = torch.where(rows.phase == Phase.DECODE, token_ids, prediction.ids[:, 0])
        rows, emission = advance(rows, prediction, self.mask_token_id)
        self.table.scatter_(indices, rows)
        return self._result(batch, output, emission, rows.tokens[:, 0])

    def _forward_rows(
        self, batch: Any, rows: Rows, step: Layout, req_pool_indices: torch.Tensor, prefix_lens: torch.Tensor
    ) -> torch.Tensor:
        """Logits [B, W, V] of one forward over `rows` behind their `prefix_lens` committed tokens."""
        num_rows, width = rows.tokens.shape
        positions = (prefix_lens[:, None] + torch.arange(width, device=self.device)).reshape(-1)
        slot_table = self.model_runner.req_to_token_pool.req_to_token
        slots = write_slots(slot_table, req_pool_indices, prefix_lens, step.new_len, step.keeps_kv, width)
        forward_batch = ForwardBatch(
            forward_mode=ForwardMode.TARGET_VERIFY,
            batch_size=num_rows,
            input_ids=rows.tokens.reshape(-1),
            req_pool_indices=req_pool_indices,
            seq_lens=prefix_lens,
            out_cache_loc=slots.reshape(-1),
            seq_lens_sum=None,
            positions=positions,
            spec_algorithm=batch.spec_algorithm,
            spec_info=BlockInput(width, step, prefix_lens),
            capture_hidden_mode=CaptureHiddenMode.NULL,
        )
        self.model_runner.kv_index_translator.bind_own_plan(forward_batch)
        adapter = self.model_runner.model.draft_adapter
        token_on = step.lora_on.repeat_interleave(width)
        with adapter.switched(token_on) if adapter is not None else contextlib.nullcontext():
            result = self._target_worker.forward_batch_generation(
                batch=None, forward_batch=forward_batch, is_verify=True
            )
        logits: torch.Tensor = result.logits_output.next_token_logits
        return logits.view(num_rows, width, -1)

    def _predict(
        self, rows: Rows, logits: torch.Tensor, step: Layout, prefix_lens: torch.Tensor, sampling: Sampling
    ) -> Prediction:
        """What the logits [B, W, V] of `rows` say, each at the position that it predicts."""
        columns = torch.arange(rows.width, device=self.device)
        positions = prefix_lens[:, None] + columns + step.shift[:, None]
        return predict(logits, positions, sampling, self.mask_token_id)

    def _sample_first(self, batch: Any, logits: torch.Tensor, committed: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Sample the first position of every row as SGLang does, with all that only autoregressive rows honour."""
        output = LogitsProcessorOutput(next_token_logits=logits[:, 0].float())
        self.model_runner._preprocess_logits(output, batch.sampling_info)
        token_ids = self.model_runner.sampler(
            output,
            batch.sampling_info,
            batch.return_logprob,
            batch.top_logprobs_nums,
            batch.token_ids_logprobs,
            committed,
        )
        self._widen_logprobs(batch, output)
        return output, token_ids

    @staticmethod
    def _widen_logprobs(batch: Any, output: Any) -> None:
        """SGLang expects one log-probability per emitted token of a speculative step."""
        if batch.return_logprob:
            output.next_token_logprobs = output.next_token_logprobs[:, None]

    @staticmethod
    def _result(
        batch: Any, output: Any, emission: Emission, pending: torch.Tensor, can_run_cuda_graph: bool = False
    ) -> Any:
        new_seq_lens = batch.seq_lens.to(torch.int64) + emission.lens
        return GenerationBatchResult(
            logits_output=output,
            next_token_ids=emission.tokens.reshape(-1),
            accept_lens=emission.lens,
            new_seq_lens=new_seq_lens,
            next_draft_input=StepState(pending, new_seq_lens),
            speculative_num_draft_tokens=emission.tokens.shape[1],
            # Counts emitted tokens, so that a step which emits none counts as that.
            num_non_draft_tokens_per_req=0,
            can_run_cuda_graph=can_run_cuda_graph,
        )
