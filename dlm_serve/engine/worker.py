"""The decode worker: three modes over one KV cache, inside SGLang's speculative-worker seam.

Between steps SGLang counts C tokens of each request, all but its newest. A step runs one row per
request, which starts at position C + 1 - `Rows.num_emitted`: with the newest token where commits are
causal, elsewhere with all that is emitted and has no KV yet. Rows of all phases share a block forward;
autoregressive rows take SGLang's own decode forward where padding them to a block would cost more. A
step may emit nothing for a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode
from sglang.srt.speculative.base_spec_worker import BaseSpecWorker
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from dlm_serve.decoding import (
    Commit,
    Emission,
    Mode,
    Phase,
    Prediction,
    Rows,
    Sampling,
    hand_out,
    layout,
    random_confidence,
    resample,
)
from dlm_serve.engine.block_step import BlockStep, Step
from dlm_serve.engine.first_block import FirstBlocks
from dlm_serve.engine.inputs import StepState
from dlm_serve.engine.prefill import StretchBackend, stretches_of
from dlm_serve.engine.requests import first_block_of, is_private, record_of, settings_of
from dlm_serve.engine.sampler import DlmSampler, sampling_of
from dlm_serve.engine.serving import load_serving
from dlm_serve.engine.split import Split
from dlm_serve.engine.windows import Windows

Publish = Callable[[torch.Tensor], None]


class DlmWorker(BaseSpecWorker):  # type: ignore[misc]  # the base is untyped
    """Runs every decode step of a diffusion language model, and its first block where the prefill predicts none.

    The prefill is SGLang's own, with the attention of `engine.prefill` where prompts are not causal.
    """

    def __init__(self, server_args: Any, gpu_id: int, nccl_port: int, target_worker: Any, **_: Any) -> None:
        super().__init__()
        self._target_worker = target_worker
        self._draft_worker = None
        serving = load_serving(server_args)
        self.model_runner = target_worker.model_runner
        self.device = target_worker.device
        self.mask_token_id = serving.checkpoint.mask_token_id
        self.policy = serving.policy
        self.block_size = serving.checkpoint.block_size
        self._routing = serving.config.routing
        self.max_width = self._routing.max_width
        # Read by SGLang, which sizes reserves and metrics with them.
        self.speculative_num_draft_tokens = self.max_width
        self.speculative_num_steps = 1
        self.topk = 1

        # What is left to SGLang's runner is prefill and plain decode, whose graphs it captures then.
        self.model_runner.spec_algorithm = SpeculativeAlgorithm.NONE
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

    def init_cuda_graphs(self) -> None:
        """Set up the state of all requests and, where SGLang captures its decode graphs, ours of block steps."""
        slot_table = self.model_runner.req_to_token_pool.req_to_token
        self.table = Rows.table(slot_table.shape[0], self.max_width, self.mask_token_id, self.device)
        eager = BlockStep(self.model_runner, self.table, self.mask_token_id, self.policy)
        self.windows = Windows(eager, self.model_runner, self.policy, self._draw)
        self.step: Step = eager
        if self.model_runner.decode_cuda_graph_capture_bs:
            from dlm_serve.engine.block_graphs import BlockGraphs

            widths = self.policy.usable_widths(self.block_size, self._routing.widths)
            self.step = BlockGraphs.capture(eager, self.model_runner, self._routing, widths)
        self.first_blocks = FirstBlocks(self.step, self.table, self.mask_token_id, self.policy, self._predict)

    def forward_batch_generation(self, batch: Any, on_publish: Publish | None = None, **_: Any) -> Any:
        """Run one EXTEND or one decode step of SGLang's `batch`."""
        result = self._extend(batch) if batch.forward_mode.is_extend() else self._decode(batch)
        if on_publish is not None:
            on_publish(result.new_seq_lens)
        return result

    def _extend(self, batch: Any) -> Any:
        """Prefill, and set up the requests' rows behind their first token."""
        rows = Rows.of([settings_of(req) for req in batch.reqs], self.max_width).to(self.device)
        batch.sampling_info.sampling_seed = rows.seed
        sampling = sampling_of(batch.sampling_info)
        for req in batch.reqs:
            req.skip_radix_cache_insert |= is_private(req, self.policy)
        with self._prompts_seen(batch):
            result = self._target_worker.forward_batch_generation(batch)
        pending = result.next_token_ids.to(torch.int64)
        indices = batch.req_pool_indices.long()
        self.table.scatter_(indices, rows.start_block(pending, self.mask_token_id))
        blocks = {i: block for i, req in enumerate(batch.reqs) if (block := first_block_of(req, self.policy))}
        if blocks:
            at = self._to_device(tuple(blocks))
            reqs = [batch.reqs[i] for i in blocks]
            starts = self.windows if self.policy.commit is Commit.FUSED else self.first_blocks
            pending[at] = starts.start(reqs, indices[at], list(blocks.values()), sampling.select(at))
        result.next_token_ids = pending
        result.new_seq_lens = batch.seq_lens
        result.next_draft_input = StepState(pending, batch.seq_lens)
        return result

    def _prompts_seen(self, batch: Any) -> AbstractContextManager[None]:
        """In this context the prompts of an EXTEND see themselves as the family's do."""
        backend: StretchBackend | None = self.model_runner.attn_backend.stretches
        if backend is None:
            return nullcontext()
        return backend.cut_into(stretches_of(batch, self.policy, self.block_size))

    def _decode(self, batch: Any) -> Any:
        """One step of rows in any mix of modes: a block forward, a decode forward, or both."""
        decided = [i for i, req in enumerate(batch.reqs) if record_of(req).is_decided]
        split = Split.of([record_of(req).plan for req in batch.reqs], self.policy, decided)
        indices, committed = batch.req_pool_indices.long(), batch.seq_lens.to(torch.int64)
        batch.sampling_info.sampling_seed = self.table.seed[indices]
        sampling = sampling_of(batch.sampling_info)
        if len(split.block_rows) == len(batch.reqs):
            return self._block_step(batch, indices, committed, split.width, sampling)
        if len(split.decode_rows) == len(batch.reqs):
            logits, captured = self._decode_forward(indices, committed, batch.seq_lens_cpu)
            output, token_ids = self._sample(batch, logits, committed)
            return self._result(batch, output, self._emit_decoded(indices, token_ids), captured)
        return self._split_step(batch, indices, committed, split, sampling)

    def _split_step(
        self, batch: Any, indices: torch.Tensor, committed: torch.Tensor, split: Split, sampling: Sampling
    ) -> Any:
        """A forward over the rows of each kind that there are, one after the other; some may need none."""
        reqs = batch.reqs
        output, captured = LogitsProcessorOutput(next_token_logits=None), not split.draft_rows
        parts: list[tuple[torch.Tensor, Emission]] = []
        if split.draft_rows:
            rows = self._to_device(split.draft_rows)
            drafting = [reqs[i] for i in split.draft_rows]
            parts.append((rows, self.windows.verify(drafting, indices[rows], committed[rows], sampling.select(rows))))
        if split.block_rows:
            rows = self._to_device(split.block_rows)
            at = indices[rows]
            _, prediction = self._predict(
                [reqs[i] for i in split.block_rows], at, committed[rows], split.width, sampling.select(rows)
            )
            parts.append((rows, self.step.advance(at, prediction)))
            captured &= self.step.is_captured(len(split.block_rows), split.width)
        if split.decode_rows:
            rows = self._to_device(split.decode_rows)
            seq_lens_cpu = None if batch.seq_lens_cpu is None else batch.seq_lens_cpu[list(split.decode_rows)]
            logits, decode_captured = self._decode_forward(indices[rows], committed[rows], seq_lens_cpu)
            # SGLang samples a whole batch; what it finds for the other rows is not used.
            spread = logits.new_zeros(len(reqs), logits.shape[1]).index_copy_(0, rows, logits)
            output, token_ids = self._sample(batch, spread, committed)
            parts.append((rows, self._emit_decoded(indices[rows], token_ids[rows])))
            captured &= decode_captured
        if split.decided_rows:
            rows = self._to_device(split.decided_rows)
            parts.append((rows, self._hand_out(indices[rows])))
        emission = Emission.empty(len(reqs), max(part.tokens.shape[1] for _, part in parts), self.device)
        for rows, part in parts:
            emission = emission.put(rows, part)
        return self._result(batch, output, emission, captured)

    def _hand_out(self, indices: torch.Tensor) -> Emission:
        """What EXTEND calls decided is emitted."""
        rows, emission = hand_out(self.table.gather(indices), self.policy)
        self.table.scatter_(indices, rows)
        return emission

    def _block_step(
        self, batch: Any, indices: torch.Tensor, committed: torch.Tensor, width: int, sampling: Sampling
    ) -> Any:
        """One block forward over all rows."""
        logits, prediction = self._predict(batch.reqs, indices, committed, width, sampling)
        output = LogitsProcessorOutput(next_token_logits=None)
        if any(record_of(req).plan.mode is Mode.AUTOREGRESSIVE for req in batch.reqs):
            output, token_ids = self._sample(batch, logits[:, 0].float(), committed)
            is_decode = (self.table.phase[indices] == Phase.DECODE)[:, None]
            is_first = torch.arange(prediction.ids.shape[1], device=self.device) == 0
            ids = torch.where(is_decode & is_first, token_ids[:, None], prediction.ids)
            prediction = replace(prediction, ids=ids)
        captured = self.step.is_captured(len(batch.reqs), width)
        return self._result(batch, output, self.step.advance(indices, prediction), captured)

    def _predict(
        self, reqs: Sequence[Any], indices: torch.Tensor, committed: torch.Tensor, width: int, sampling: Sampling
    ) -> tuple[torch.Tensor, Prediction]:
        """Logits [B, W, V] of a block forward over the rows of `reqs`, and the tokens chosen as each of them samples.

        Autoregressive rows are left to `_sample`.
        """
        logits, prediction = self.step.forward(indices, committed, width)
        if any(_is_drawn(req) or record_of(req).plan.is_shuffled for req in reqs):
            rows = self.table.gather(indices)
            prediction = self._draw(reqs, rows, rows.starts(committed), (logits, prediction), sampling)
        return logits, prediction

    def _draw(
        self,
        reqs: Sequence[Any],
        rows: Rows,
        starts: torch.Tensor,
        predicted: tuple[torch.Tensor, Prediction],
        sampling: Sampling,
    ) -> Prediction:
        """What is predicted for `rows` from positions `starts` [B], by chance where their requests ask for that."""
        logits, prediction = predicted
        columns = torch.arange(logits.shape[1], device=self.device)
        positions = (starts + layout(rows, self.policy).shift)[:, None] + columns
        drawn = tuple(i for i, req in enumerate(reqs) if _is_drawn(req))
        if drawn:
            at = self._to_device(drawn)
            part = Prediction(prediction.ids[at], prediction.confidence[at], prediction.entropy[at])
            part = resample(part, logits[at], positions[at], sampling.select(at), self.mask_token_id)
            prediction.ids[at], prediction.confidence[at] = part.ids, part.confidence
        shuffled = tuple(i for i, req in enumerate(reqs) if record_of(req).plan.is_shuffled)
        if shuffled:
            at = self._to_device(shuffled)
            prediction.confidence[at] = random_confidence(rows.seed[at], positions[at])
        return prediction

    def _decode_forward(
        self, indices: torch.Tensor, committed: torch.Tensor, committed_cpu: torch.Tensor | None
    ) -> tuple[torch.Tensor, bool]:
        """Logits [B, V] behind the pending tokens, by SGLang's own decode forward, and whether a graph ran it."""
        slot_table = self.model_runner.req_to_token_pool.req_to_token
        seq_lens_cpu = None if committed_cpu is None else committed_cpu + 1
        forward_batch = ForwardBatch(
            forward_mode=ForwardMode.DECODE,
            batch_size=indices.shape[0],
            input_ids=self.table.tokens[indices, 0],
            req_pool_indices=indices,
            seq_lens=committed + 1,
            seq_lens_cpu=seq_lens_cpu,
            seq_lens_sum=None if seq_lens_cpu is None else int(seq_lens_cpu.sum()),
            orig_seq_lens=committed + 1,
            out_cache_loc=slot_table[indices, committed].long(),
            positions=committed,
            spec_algorithm=SpeculativeAlgorithm.NONE,
            capture_hidden_mode=CaptureHiddenMode.NULL,
        )
        self.model_runner.kv_index_translator.bind_own_plan(forward_batch)
        result = self._target_worker.forward_batch_generation(batch=None, forward_batch=forward_batch, is_verify=True)
        if not result.can_run_cuda_graph:
            # A block graph of this very step may have said that the slot table may be written again.
            self.model_runner.shared_read_done_event = None
        return result.logits_output.next_token_logits, result.can_run_cuda_graph

    def _sample(self, batch: Any, logits: torch.Tensor, committed: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Sample the next token of every row from `logits` [B, V] float32 as SGLang does, with all that it honours."""
        output = LogitsProcessorOutput(next_token_logits=logits)
        batch.sampling_info.grammars = [req.grammar for req in batch.reqs] if batch.has_grammar else None
        self.model_runner._preprocess_logits(output, batch.sampling_info)
        token_ids = self.model_runner.sampler(
            output,
            batch.sampling_info,
            batch.return_logprob,
            batch.top_logprobs_nums,
            batch.token_ids_logprobs,
            committed,
        ).to(torch.int64)
        if batch.return_logprob:  # SGLang expects one for each emitted token of a speculative step
            output.next_token_logprobs = output.next_token_logprobs[:, None]
        return output, token_ids

    def _emit_decoded(self, indices: torch.Tensor, token_ids: torch.Tensor) -> Emission:
        """The sampled tokens become pending and are emitted."""
        self.table.tokens[indices, 0] = token_ids
        return Emission(token_ids[:, None], torch.ones_like(token_ids, dtype=torch.int32))

    def _to_device(self, numbers: tuple[int, ...]) -> torch.Tensor:
        """On the device as int64, without waiting for it."""
        host = torch.tensor(numbers, dtype=torch.int64, pin_memory=self.device == "cuda")
        return host.to(self.device, non_blocking=True)

    def _result(self, batch: Any, output: Any, emission: Emission, captured: bool) -> Any:
        new_seq_lens = batch.seq_lens.to(torch.int64) + emission.lens
        pending = self.table.tokens[batch.req_pool_indices.long(), 0]
        return GenerationBatchResult(
            logits_output=output,
            next_token_ids=emission.tokens.reshape(-1),
            accept_lens=emission.lens,
            new_seq_lens=new_seq_lens,
            next_draft_input=StepState(pending, new_seq_lens),
            speculative_num_draft_tokens=emission.tokens.shape[1],
            # Counts emitted tokens, so that a step which emits none counts as that.
            num_non_draft_tokens_per_req=0,
            can_run_cuda_graph=captured,
        )


def _is_drawn(req: Any) -> bool:
    """Whether the tokens of `req` are sampled by us, rather than greedy or left to SGLang's sampler."""
    return req.sampling_params.top_k != 1 and record_of(req).plan.mode is not Mode.AUTOREGRESSIVE
