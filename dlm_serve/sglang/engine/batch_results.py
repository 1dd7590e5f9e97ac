"""SGLang's processing of what a batch has found, where it loses count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang.srt.managers.scheduler_components.batch_result_processor import SchedulerBatchResultProcessor


class DlmBatchResultProcessor(SchedulerBatchResultProcessor):  # type: ignore[misc]  # the base is untyped
    """Gives each prompt of an EXTEND call its own log-probabilities.

    SGLang adds up how many the prompts before it have, and leaves out those of requests that were retracted or aborted
    while the call ran.
    """

    def _apply_prefill_logprobs(self, *, i: int, logprob_pt: int, **kwargs: Any) -> int:
        return int(super()._apply_prefill_logprobs(i=i, logprob_pt=_num_before(i, **kwargs), **kwargs))

    def _apply_chunked_prefill_logprobs(self, *, i: int, logprob_pt: int, **kwargs: Any) -> int:
        return int(super()._apply_chunked_prefill_logprobs(i=i, logprob_pt=_num_before(i, **kwargs), **kwargs))


def _num_before(
    row: int, extend_input_len_per_req: Sequence[int], extend_logprob_start_len_per_req: Sequence[int], **_: Any
) -> int:
    """Return how many log-probabilities the prompts before that of a row have."""
    return sum(extend_input_len_per_req[:row]) - sum(extend_logprob_start_len_per_req[:row])
