"""Advance rows by what a forward predicts, in the place of vLLM's sampler."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext
from vllm.v1.worker.gpu.sample.logprob import compute_topk_scores
from vllm.v1.worker.gpu.sample.output import SamplerOutput

from dlm_serve.decoding import StepOutput
from dlm_serve.vllm.serving import Serving
from dlm_serve.vllm.table import Indices, RequestTable


class DlmSampler:
    """What tokens a step emits: any number, up to all those of a block."""

    def __init__(self, sampler: Any, serving: Serving, table: RequestTable) -> None:
        self._base, self._serving, self._table = sampler, serving, table

    def __getattr__(self, name: str) -> Any:
        """Return what vLLM's runner reads of its own sampler, which keeps what requests ask of their logits."""
        return getattr(self._base, name)

    def __call__(self, logits: torch.Tensor, input_batch: Any) -> SamplerOutput:
        """Return what the rows of a forward emit for their `logits` [L, V], and advance them.

        The logits of a row stand together: one for a prompt, one for each token of a block.
        """
        num_reqs, device = input_batch.num_reqs, logits.device
        step = self._table.end_step(input_batch)
        if self._table.decode_tokens(input_batch.idx_mapping_np):
            return self._decode(logits, input_batch, step)
        output = StepOutput.empty(num_reqs, self._serving.width, device)
        if len(step):
            advancing = async_tensor_h2d(step, device=device)
            output.put_(advancing, self._advance(self._ruled(logits, input_batch), input_batch, step, advancing))
        # What is not emitted was not computed, but for prompts of which more is to come.
        num_logits = torch.diff(input_batch.cu_num_logits[: num_reqs + 1])
        num_rejected = torch.where(self._table.in_prompt(input_batch.idx_mapping_np), 0, num_logits - output.lens)
        indices = input_batch.idx_mapping[:num_reqs]
        self._base.req_states.draft_tokens[indices] = self._table.rows.tokens[indices, 1:]
        return SamplerOutput(
            sampled_token_ids=output.tokens,
            logprobs_tensors=self._logprobs(logits, input_batch, output.tokens[:, 0]),
            num_nans=None,
            num_sampled=output.lens,
            num_rejected=num_rejected.int(),
        )

    def _decode(self, logits: torch.Tensor, input_batch: Any, step: Indices) -> SamplerOutput:
        """Return the token that each row emits of a batch that decodes autoregressively, for `logits` [B, V].

        Such rows are only ever one token wide, so that this does what `_advance` would with fewer launches. The rows
        `step` emit; others are parts of prompts.
        """
        num_reqs, choice, rows = input_batch.num_reqs, self._serving.token_choice, self._table.rows
        indices, ruled = input_batch.idx_mapping[:num_reqs], self._ruled(logits, input_batch)
        if self._table.are_greedy(input_batch.idx_mapping_np):
            tokens = choice.sample(ruled)
        else:
            positions = input_batch.positions[input_batch.logits_indices] + 1
            tokens = choice.sample(ruled, positions, rows.sampling.select(indices))
        rows.tokens[indices, 0] = tokens
        lens = torch.ones(num_reqs, dtype=torch.int32, device=logits.device)
        if len(step) < num_reqs:
            emits = np.zeros(num_reqs, dtype=np.int32)
            emits[step] = 1
            lens = async_tensor_h2d(emits, device=logits.device)
        return SamplerOutput(
            sampled_token_ids=tokens[:, None],
            logprobs_tensors=self._logprobs(logits, input_batch, tokens),
            num_nans=None,
            num_sampled=lens,
            num_rejected=torch.zeros_like(lens),
        )

    def _advance(self, logits: torch.Tensor, input_batch: Any, step: Indices, advancing: torch.Tensor) -> StepOutput:
        """Advance the rows `step` of the batch, on the device `advancing` [B], and return what they emit."""
        commit, choice, num_reqs = self._serving.commit, self._serving.token_choice, input_batch.num_reqs
        entering = self._table.entering(input_batch.idx_mapping[:num_reqs])
        indices, first = input_batch.idx_mapping[advancing], input_batch.cu_num_logits[advancing].long()
        rows = entering.rows if len(step) == num_reqs else entering.rows.gather(advancing)
        # Rows of one token are given a second column, of padding, so that kernels see no row of a single one.
        width = max(2, int(np.diff(input_batch.cu_num_logits_np)[step].max()))
        columns = torch.arange(width, device=logits.device)
        # Behind the end of a row stand the logits of others, at which nothing looks.
        at = (first[:, None] + columns).clamp(max=len(logits) - 1)
        starts = input_batch.positions[input_batch.logits_indices[first]]
        positions = starts[:, None] + entering.spec.predicted_positions[:, :width][advancing]
        prediction = choice.predict(logits[at], positions, rows)
        anchors = entering.spec.anchors[:, :width][advancing]
        return commit.advance_(self._table.rows, indices, anchors, prediction, choice.mask_token_id)

    def _ruled(self, logits: torch.Tensor, input_batch: Any) -> torch.Tensor:
        """Return `logits` [L, V] as vLLM's penalties, biases and budgets want them; only rows of one token have any."""
        if not self._base.needs_logits_processing[input_batch.idx_mapping_np].any():
            return logits
        context = LogitsContext(
            expanded_idx_mapping=input_batch.expanded_idx_mapping,
            idx_mapping=input_batch.idx_mapping,
            idx_mapping_np=input_batch.idx_mapping_np,
            expanded_local_pos=input_batch.expanded_local_pos,
            input_ids=input_batch.input_ids[input_batch.logits_indices],
            pos=input_batch.positions[input_batch.logits_indices],
            seq_lens_upper_bound_np=input_batch.seq_lens_cpu_upper_bound.numpy(),
        )
        ruled = logits.to(torch.float32, copy=True)
        for processor in self._base.logits_processors:
            ruled = processor.apply(ruled, context)
        self._base.thinking_budget_state.apply(ruled, context)
        return ruled

    def _logprobs(self, logits: torch.Tensor, input_batch: Any, token_ids: torch.Tensor) -> Any:
        """Return the log-probabilities of the first of the tokens that each row emits [B]: those who ask emit one."""
        dims = self._base.get_logprobs_dims(input_batch.idx_mapping_np)
        if dims is None:
            return None
        num_logprobs, most_token_ids = dims
        return compute_topk_scores(
            logits[input_batch.cu_num_logits[: input_batch.num_reqs].long()],
            num_logprobs,
            token_ids,
            logprob_token_ids_state=self._base.logprob_token_ids_state,
            expanded_idx_mapping=input_batch.idx_mapping,
            max_per_req_token_ids=most_token_ids,
        )
