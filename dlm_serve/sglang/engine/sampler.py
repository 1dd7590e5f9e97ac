"""Sample as SGLang does, but draw as `TokenChoice` does: Gumbel-max by (seed, position, token), never the mask.

Of EXTEND calls it applies the rules of requests; of decode steps rules and grammars are in the logits already when it
is called (`logit_step`). Seeds come in `sampling_info.sampling_seed`, set by the worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sglang.srt.layers.sampler import Sampler

from dlm_serve.decoding import RuledRows, Sampling, TokenChoice
from dlm_serve.sglang.protocols import SamplingInfoLike


class DlmSampler(Sampler):  # type: ignore[misc]  # the base is untyped
    """Chooses the next token of rows whose logits stand for one position each."""

    def __init__(self, choice: TokenChoice) -> None:
        super().__init__()
        self._choice = choice
        self._ruled: tuple[torch.Tensor, RuledRows] | None = None

    @contextmanager
    def ruled(self, rows: torch.Tensor, rules: RuledRows) -> Iterator[None]:
        """Return a context in which the `rows` [N] int64 of a batch obey `rules`, N rows."""
        self._ruled = rows, rules
        try:
            yield
        finally:
            self._ruled = None

    def _obey_(self, logits: torch.Tensor, positions: torch.Tensor) -> None:
        """Change `logits` [B, V] float32, behind tokens at `positions` [B], as the rules say."""
        if self._ruled is None:
            return
        rows, rules = self._ruled
        ruled = logits[rows, None]
        rules.adjust_(ruled, torch.zeros_like(rows)[:, None], positions[rows])
        logits[rows] = ruled.squeeze(1)

    def forward(
        self,
        logits_output: Any,
        sampling_info: SamplingInfoLike,
        return_logprob: bool,
        top_logprobs_nums: list[int],
        token_ids_logprobs: list[list[int]],
        positions: torch.Tensor,
        *,
        logprob_logits: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return token ids [B] after `positions` [B]; writes log-probabilities into `logits_output` where asked."""
        self._obey_(logits_output.next_token_logits, positions)
        logits = self._preprocess_logits(logits_output.next_token_logits, sampling_info)
        sampling = None if sampling_info.is_all_greedy else sampling_of(sampling_info)
        token_ids = self._choice.sample(logits, positions + 1, sampling)
        if return_logprob:
            scaled = (logits if logprob_logits is None else logprob_logits) / sampling_info.temperatures
            result = self.output_logprob_processor.compute_logprobs(
                scaled.log_softmax(-1), top_logprobs_nums, token_ids_logprobs, token_ids
            )
            result.write_output_to(logits_output)
        self._sync_token_ids_across_tp(token_ids, sampling_info)
        return token_ids


def sampling_of(sampling_info: SamplingInfoLike) -> Sampling:
    """Return SGLang's SamplingBatchInfo in the terms of `decoding`."""
    return Sampling(
        temperature=sampling_info.temperatures.view(-1).float(),
        top_k=sampling_info.top_ks,
        top_p=sampling_info.top_ps,
        min_p=sampling_info.min_ps,
        seed=sampling_info.sampling_seed,
    )
