"""Correct what SGLang reports of decode steps, in its log, `/metrics`, `/v1/loads` and `/server_info`.

SGLang takes every step of ours for a verification of drafts, as long as rows are wide, all of whose tokens it keeps.
But steps denoise, too, drafts may be shorter, and what lies behind the end of an answer is no part of it. So nothing
is reported of drafts (`meta_info.dlm` and our metrics do that), and tokens are those of answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sglang.srt.managers.scheduler_components.metrics_reporter import SchedulerMetricsReporter
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from dlm_serve.sglang.engine.counting import METER


class DlmMetricsReporter(SchedulerMetricsReporter):  # type: ignore[misc]  # the base is untyped
    """Reports tokens of answers, and no drafts."""

    num_generated_tokens: int
    _num_reported = 0
    """Tokens of decode steps that were reported."""

    def update_spec_metrics(self, *_: Any, **__: Any) -> None:
        """Do nothing: see above."""

    def report_decode_stats(
        self, can_run_cuda_graph: bool, running_batch: Any = None, num_generated_tokens: int = 0
    ) -> None:
        """Report a step by what it added to answers, in place of the `num_generated_tokens` that SGLang counted.

        What an answer's end took back of earlier steps is taken off later ones: SGLang's counters only grow.
        """
        num_decoded = max(METER.num_decoded - self._num_reported, 0)
        self._num_reported += num_decoded
        self.num_generated_tokens += num_decoded - num_generated_tokens
        with _without_drafts(self.scheduler):
            super().report_decode_stats(can_run_cuda_graph, running_batch, num_decoded)


@contextmanager
def _without_drafts(scheduler: Any) -> Iterator[None]:
    """Return a context in which SGLang's `scheduler` speculates not."""
    algorithm = scheduler.spec_algorithm
    scheduler.spec_algorithm = SpeculativeAlgorithm.NONE
    try:
        yield
    finally:
        scheduler.spec_algorithm = algorithm
