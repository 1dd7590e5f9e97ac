"""SGLang's processing of what a batch has found, where it loses count or looks too early."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang.srt.managers.scheduler_components.batch_result_processor import SchedulerBatchResultProcessor

from dlm_serve.sglang.protocols import BatchLike


class DlmBatchResultProcessor(SchedulerBatchResultProcessor):  # type: ignore[misc]  # the base is untyped
    """Gives requests what an EXTEND call has found.

    Each prompt gets its own log-probabilities. SGLang adds up how many the prompts before it have, and leaves out those
    of requests that were retracted or aborted while the call ran.
    """

    def process_batch_result_prefill(self, batch: BatchLike, result: Any) -> None:
        """Bring grammars behind the tokens first: an answer whose grammar ends with its token ends, and not later."""
        self.advance_grammar_fsm(result, batch)
        super().process_batch_result_prefill(batch, result)

    def _apply_prefill_logprobs(self, *, i: int, logprob_pt: int, **kwargs: Any) -> int:
        return int(super()._apply_prefill_logprobs(i=i, logprob_pt=_num_before(i, **kwargs), **kwargs))

    def _apply_chunked_prefill_logprobs(self, *, i: int, logprob_pt: int, **kwargs: Any) -> int:
        return int(super()._apply_chunked_prefill_logprobs(i=i, logprob_pt=_num_before(i, **kwargs), **kwargs))


def _num_before(
    row: int, extend_input_len_per_req: Sequence[int], extend_logprob_start_len_per_req: Sequence[int], **_: Any
) -> int:
    """Return how many log-probabilities the prompts before that of a row have."""
    return sum(extend_input_len_per_req[:row]) - sum(extend_logprob_start_len_per_req[:row])
