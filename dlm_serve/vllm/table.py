"""The decode state of all requests of a model runner, by its index of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from dlm_serve.decoding import AttentionSpec, Commit, Phase, RequestState, RowOptions, Rows

Indices = np.ndarray[Any, np.dtype[np.intp]]


@dataclass(frozen=True)
class Entering:
    """The rows of a batch [B, W], and how they enter its forward if each starts at position 0."""

    rows: Rows
    spec: AttentionSpec


class RequestTable:
    """Rows on the device, and what the host knows to tell apart which of them a forward advances.

    A prompt is a row that decodes one token: its last one is pending until the forward over it says what follows.
    """

    def __init__(self, num_requests: int, width: int, commit: Commit, mask_token_id: int, device: torch.device) -> None:
        self.rows = Rows.zeros(num_requests, width, device)
        self._commit = commit
        self._mask_token_id = mask_token_id
        self._entering: Entering | None = None
        self._block_lengths = np.ones(num_requests, dtype=np.int32)
        self._decodes_tokens = np.ones(num_requests, dtype=bool)
        self._is_greedy = np.ones(num_requests, dtype=bool)
        self._in_prompt = np.ones(num_requests, dtype=bool)
        self._resumes = np.zeros(num_requests, dtype=bool)

    def add(self, index: int, options: RowOptions, tokens: list[int], num_prompt: int, state: RequestState) -> None:
        """Begin a request, new or resumed, with all its `tokens`, of which the first `num_prompt` are its prompt."""
        row = Rows.of([options], self.rows.width).start_block(torch.tensor(tokens[-1:]), self._mask_token_id)
        # A block of one token is its pending token: there is nothing to denoise, and so nothing to go on with.
        resumes = options.block_length > 1 and self._commit.known_start(state, tokens, num_prompt) is not None
        if not resumes:
            row = row.replace(phase=torch.full_like(row.phase, Phase.DECODE), new_len=torch.ones_like(row.new_len))
        self._block_lengths[index], self._in_prompt[index], self._resumes[index] = options.block_length, True, resumes
        self._decodes_tokens[index], self._is_greedy[index] = options.first_phase is Phase.DECODE, options.top_k == 1
        device = self.rows.tokens.device
        self.rows.scatter_(torch.tensor([index]).to(device, non_blocking=True), row.to(device))

    def begin_step(self) -> None:
        """Forget the rows of the step before."""
        self._entering = None

    def entering(self, indices: torch.Tensor) -> Entering:
        """Return the rows of this step, of the requests at `indices` [B] on the device.

        What lays them out for the forward and what advances them share one copy.
        """
        if self._entering is None:
            rows = self.rows.gather(indices)
            spec = self._commit.attention_spec(rows, rows.num_emitted - 1, self._mask_token_id)
            self._entering = Entering(rows, spec)
        return self._entering

    def in_prompt(self, indices: Indices) -> torch.Tensor:
        """Return whether the requests at `indices` [B] still encode their prompts, [B] bool on the device."""
        in_prompt: torch.Tensor = async_tensor_h2d(self._in_prompt[indices], device=self.rows.tokens.device)
        return in_prompt

    def decode_tokens(self, indices: Indices) -> bool:
        """Return whether the requests at `indices` [B] all decode autoregressively: their rows have one token."""
        return bool(self._decodes_tokens[indices].all())

    def are_greedy(self, indices: Indices) -> bool:
        """Return whether the requests at `indices` [B] all take the most likely tokens."""
        return bool(self._is_greedy[indices].all())

    def all_causal(self, indices: Indices) -> bool:
        """Return whether it is known here that all rows at `indices` [B] are causal: prompts, and single tokens."""
        return bool((self._in_prompt[indices] | self._decodes_tokens[indices]).all())

    def resumed(self, indices: Indices) -> Indices:
        """Return which rows of those at `indices` [B] go on with a block that was begun before a preemption."""
        return np.flatnonzero(self._resumes[indices] & ~self._in_prompt[indices])

    def end_step(self, input_batch: Any) -> Indices:
        """Return which rows of vLLM's InputBatch its forward advances, and note whose prompt it has encoded.

        Not advanced are parts of prompts; rows that vLLM has cut, where a step had no room for all of their tokens; and
        rows that have encoded what was answered before they were preempted, to go on with a block begun then.
        """
        indices, scheduled = input_batch.idx_mapping_np, input_batch.num_scheduled_tokens
        in_prompt = self._in_prompt[indices]
        encoded = input_batch.num_computed_prefill_tokens_np + scheduled >= input_batch.prefill_len_np
        ends_prompt = in_prompt & encoded
        whole = scheduled >= self._block_lengths[indices]
        self._in_prompt[indices[ends_prompt]] = False
        return np.flatnonzero(np.where(in_prompt, ends_prompt & ~self._resumes[indices], whole))
