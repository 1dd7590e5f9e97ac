"""SGLang's scheduler, where steps emit nothing for some rows, and what it sends."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from sglang.srt.managers.io_struct import SetInternalStateReqOutput
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer
from sglang.srt.mem_cache.allocation_sizing import get_alloc_page_size, get_alloc_reserve_per_decode
from sglang.srt.runtime_context import get_parallel
from sglang.utils import TypeBasedDispatcher

from dlm_serve.decoding import Mode
from dlm_serve.errors import ConfigError
from dlm_serve.metrics.registry import KV_SLOTS, ROWS, WIDTH
from dlm_serve.routing.router import Decision
from dlm_serve.sglang.engine.batch_results import DlmBatchResultProcessor
from dlm_serve.sglang.engine.counting import METER, count_abort
from dlm_serve.sglang.engine.export import Exporter
from dlm_serve.sglang.engine.metrics_reporter import DlmMetricsReporter
from dlm_serve.sglang.engine.requests import state_of, statistics_of
from dlm_serve.sglang.engine.weight_updates import DlmWeightUpdater
from dlm_serve.sglang.engine.worker import DlmWorker
from dlm_serve.sglang.protocols import BatchLike, ReqLike
from dlm_serve.sglang.serving import PIN, STATISTICS_KEY, current

EXPORT_SECONDS = 1.0
"""Between exports of metrics while requests run; Prometheus asks less often."""

LONGEST_CHARACTER = 4
"""Tokens that a character may take, of a byte each."""


class DlmScheduler(Scheduler):  # type: ignore[misc]  # the base is untyped
    """Schedules requests whose steps may emit nothing."""

    max_req_len: int
    max_req_input_len: int
    max_total_num_tokens: int
    draft_worker: DlmWorker
    weight_updater: Any
    batch_result_processor: Any
    running_batch: BatchLike
    last_batch: BatchLike | None
    chunked_req: ReqLike | None
    metrics_collector_context: Any
    metrics_collector: Any
    pool_stats_observer: Any

    def init_model_worker(self) -> None:
        """Set how long requests may be: alone in the pool, one of the greatest length can take every step.

        Raises ConfigError where the pool has no room for any.
        """
        super().init_model_worker()
        beyond_prompt = self.max_req_len - self.max_req_input_len
        self.max_req_len = longest_request(self.max_req_len, beyond_prompt, self.max_total_num_tokens, _reserve())
        self.max_req_input_len = self.max_req_len - beyond_prompt

    def init_weight_updater(self) -> None:
        """Set what replaces weights while the server runs."""
        super().init_weight_updater()
        self.weight_updater = _as(DlmWeightUpdater, self.weight_updater)

    def get_output_streamer_class(self) -> type[SchedulerOutputStreamer]:
        """Return the class that reports statistics."""
        return DlmOutputStreamer

    def init_batch_result_processor(self) -> None:
        """Set what gives requests the results of a batch."""
        super().init_batch_result_processor()
        self.batch_result_processor = _as(DlmBatchResultProcessor, self.batch_result_processor)

    def init_metrics_collector(self) -> None:
        """Register our metrics beside SGLang's, where it has any."""
        super().init_metrics_collector()
        context = self.metrics_collector_context
        is_measured = context.current_scheduler_metrics_enabled
        self._exporter = Exporter(context.collector.labels) if is_measured else None
        self._next_export = -math.inf

    def init_metrics_reporter(self) -> None:
        """Report what SGLang does, where that is right for us."""
        self.metrics_reporter = DlmMetricsReporter(
            scheduler=self,
            metrics_collector_context=self.metrics_collector_context,
            metrics_collector=self.metrics_collector,
        )

    def process_batch_result(self, batch: BatchLike, result: Any) -> None:
        """Export what was counted: once a second, and whenever a batch has ended."""
        super().process_batch_result(batch, result)
        if self._exporter is None:
            return
        now = time.monotonic()
        if now >= self._next_export or all(req.finished() for req in batch.reqs):
            self._next_export = now + EXPORT_SECONDS
            self._export(self._exporter)

    def _export(self, exporter: Exporter) -> None:
        exporter.export(METER.counts(current().commit))
        settings = [state_of(req).current for req in self._decoding_reqs()]
        rows = Counter(one.mode for one in settings)
        for mode in current().checkpoint.family.modes:
            exporter.set(ROWS, rows[mode], mode)
        exporter.set(WIDTH, max((one.choice.row_length for one in settings), default=0))
        pool = self.pool_stats_observer.get_pool_stats()
        slots = {"free": pool.full_available_size, "cached": pool.full_evictable_size, "held": pool.full_num_used}
        for state, number in slots.items():
            exporter.set(KV_SLOTS, number, state)

    def send_abort_output(self, abort_req: Any, req: ReqLike) -> None:
        """Count a request that ends while it waits."""
        super().send_abort_output(abort_req, req)
        count_abort(req)

    def init_request_dispatcher(self) -> None:
        """Let decisions of the router be dispatched as what clients send is."""
        super().init_request_dispatcher()
        self._request_dispatcher += TypeBasedDispatcher([(Decision, self._apply_decision)])

    def get_internal_state(self, recv_req: Any) -> Any:
        """Report what is served, what the router does, what was counted, where and when, beside SGLang's state."""
        output = super().get_internal_state(recv_req)
        worker = self.draft_worker
        output.internal_state[STATISTICS_KEY] = {
            **current().report().model_dump(mode="json"),
            "dp_rank": get_parallel().dp_rank,
            **worker.router.report(),
            "captured": worker.captured(),
            "counters": METER.counts(current().commit).report(),
            "counted_at": time.time(),
        }
        return output

    def set_internal_state(self, recv_req: Any) -> Any:
        """Pin the router, or release it, where that is asked for; every rank is asked in the same iteration."""
        number = recv_req.server_args.get(PIN)
        if number is None:
            return super().set_internal_state(recv_req)
        pins = dict(enumerate(current().pins))
        if number in pins:
            self.draft_worker.pin(pins[number])
        return SetInternalStateReqOutput(updated=number in pins)

    def _poll_timeout_aborts(self) -> list[Any]:
        """Return what the first rank adds to what clients send, so that all ranks see it in the same iteration."""
        aborts: list[Any] = super()._poll_timeout_aborts()
        if not self.draft_worker.is_decision_due(len(self.running_batch.reqs) + len(self._prefilled_reqs())):
            return aborts
        decision = self.draft_worker.decide(self._decoding_reqs())
        return aborts if decision is None else [*aborts, decision]

    def _apply_decision(self, decision: Decision) -> None:
        self.draft_worker.apply(decision, self._decoding_reqs())

    def _decoding_reqs(self) -> list[ReqLike]:
        """Return the requests of the next decode step, as far as they are known: those just prefilled, too."""
        joined = [*self.running_batch.reqs, *(req for req in self._prefilled_reqs() if req is not self.chunked_req)]
        return [req for req in dict.fromkeys(joined) if not req.finished()]

    def _prefilled_reqs(self) -> list[ReqLike]:
        """Return the requests of the last batch if it was an EXTEND call: they join those that decode."""
        last = self.last_batch
        return last.reqs if last is not None and last.forward_mode.is_extend() else []

    def _reqs_finishing_inflight(self, batch: BatchLike) -> list[ReqLike]:
        """Return the requests that the step in flight ends by length: it must be certain to emit."""
        finishing: list[ReqLike] = super()._reqs_finishing_inflight(batch)
        return [req for req in finishing if state_of(req).current.mode is Mode.AUTOREGRESSIVE]


class DlmOutputStreamer(SchedulerOutputStreamer):  # type: ignore[misc]  # the base is untyped
    """Sends each output with the request's statistics, and nothing where there is nothing new."""

    has_additional_customized_info = True

    def build_additional_customized_info(self, reqs: Sequence[ReqLike]) -> dict[str, list[Any]]:
        """Return the statistics of `reqs` so far."""
        return {STATISTICS_KEY: [[statistics_of(req)] for req in reqs]}

    def _stream_output_generation(
        self, reqs: Sequence[ReqLike], return_logprob: bool, skip_req: ReqLike | None = None, **kwargs: Any
    ) -> None:
        news = [req for req in reqs if req is not skip_req and _has_news(req)]
        super()._stream_output_generation(news, return_logprob, **kwargs)


def room_for_reserve(extra_len: int) -> int:
    """After `get_req_to_token_extra_context_len`: let a row hold all slots that a step may reserve."""
    return max(extra_len, _reserve())


def longest_request(max_req_len: int, beyond_prompt: int, num_slots: int, reserve: int) -> int:
    """Return the length of the longest request that `num_slots` hold with the `reserve` of its steps.

    At most `max_req_len`; the last `beyond_prompt` cannot be prompt tokens. Raises ConfigError where none fits.
    """
    longest = min(max_req_len, num_slots - reserve)
    if longest <= beyond_prompt:
        raise ConfigError(
            "--max-total-tokens", num_slots, f"must exceed the {reserve} tokens that one step reserves", "raise it"
        )
    return longest


def _as(subclass: type[Any], made: Any) -> Any:
    """Return what `made`, a dataclass of SGLang's, would be as an object of our `subclass` of it."""
    return subclass(**{field.name: getattr(made, field.name) for field in fields(made) if field.init})


def _has_news(req: ReqLike) -> bool:
    """Return whether there is something to send: an end, or new tokens that are not taken back again."""
    if req.finished():
        return True
    is_new = len(req.output_ids) > req.send_token_offset and not state_of(req).plan.may_shrink
    return is_new and not (req.stream and req.return_logprob and _ends_inside_a_character(req))


def _ends_inside_a_character(req: ReqLike) -> bool:
    """Return whether the newest token waits for others to be text.

    Chats and completions send log-probabilities with text, and lose those of tokens that come without any.
    """
    if req.tokenizer is None:
        return False
    return req.tokenizer.decode(req.output_ids[-LONGEST_CHARACTER:]).endswith("\ufffd")


def _reserve() -> int:
    """Return the number of slots that a step may reserve behind what a request has committed."""
    return int(get_alloc_reserve_per_decode() + get_alloc_page_size() - 1)
