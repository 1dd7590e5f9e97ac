"""SGLang's scheduler and requests, where steps emit nothing for some rows and answers end by rules of their own."""

from __future__ import annotations

import math
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from http import HTTPStatus
from typing import Any

from sglang.srt.managers.io_struct import SetInternalStateReqOutput
from sglang.srt.managers.schedule_batch import FINISH_MATCHED_STR, FINISH_MATCHED_TOKEN, Req
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer
from sglang.srt.mem_cache.allocation_sizing import get_alloc_page_size, get_alloc_reserve_per_decode
from sglang.srt.runtime_context import get_parallel
from sglang.utils import TypeBasedDispatcher

from dlm_serve.decoding import Mode, StopRule
from dlm_serve.decoding.stop_rules import ended_length
from dlm_serve.errors import ConfigError
from dlm_serve.metrics.registry import KV_SLOTS, ROWS, WIDTH
from dlm_serve.routing.router import Decision
from dlm_serve.sglang.engine.counting import METER, count_abort, count_end, count_extend
from dlm_serve.sglang.engine.export import Exporter
from dlm_serve.sglang.engine.metrics_reporter import DlmMetricsReporter
from dlm_serve.sglang.engine.requests import NO_TOKEN, end_step, shareable_len, state_of, statistics_of
from dlm_serve.sglang.engine.weight_updates import DlmWeightUpdater
from dlm_serve.sglang.engine.worker import DlmWorker
from dlm_serve.sglang.protocols import BatchLike, ReqLike
from dlm_serve.sglang.serving import PIN, STATISTICS_KEY, current

EXPORT_SECONDS = 1.0
"""Between exports of metrics while requests run; Prometheus asks less often."""


class DlmScheduler(Scheduler):  # type: ignore[misc]  # the base is untyped
    """Schedules requests whose steps may emit nothing."""

    max_req_len: int
    max_req_input_len: int
    max_total_num_tokens: int
    draft_worker: DlmWorker
    weight_updater: Any
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
        made = self.weight_updater
        self.weight_updater = DlmWeightUpdater(**{f.name: getattr(made, f.name) for f in fields(made) if f.init})

    def get_output_streamer_class(self) -> type[SchedulerOutputStreamer]:
        """Return the class that reports statistics."""
        return DlmOutputStreamer

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
        exporter.set(WIDTH, max((one.block_length for one in settings), default=0))
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
        """Report what the router does and what was counted, and on which replica, beside SGLang's own state."""
        output = super().get_internal_state(recv_req)
        worker = self.draft_worker
        output.internal_state[STATISTICS_KEY] = {
            "dp_rank": get_parallel().dp_rank,
            **worker.router.report(),
            "captured": worker.captured(),
            "counters": METER.counts(current().commit).report(),
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


class DlmReq(Req):  # type: ignore[misc]  # the base is untyped
    """A request that may be checked for its end after a step, or an EXTEND call, without new tokens."""

    output_ids: array[int]
    reasoning_tokens: int
    spec_verify_ct: int

    def update_reasoning_tokens(self, token_id: int | list[int], think_end_ids: Any) -> None:
        """Count tokens of a thought."""
        if token_id != NO_TOKEN:
            super().update_reasoning_tokens(token_id, think_end_ids)

    def update_self_opened_reasoning_tokens(
        self, token_id: int | list[int], think_start_ids: Any, think_end_ids: Any
    ) -> None:
        """Count tokens of a thought that the answer opens."""
        if token_id != NO_TOKEN:
            super().update_self_opened_reasoning_tokens(token_id, think_start_ids, think_end_ids)

    def update_finish_state(self, new_accepted_len: int | None = None) -> None:
        """Count the decode step that emitted so many tokens (None is an EXTEND call), and finish if there is a reason.

        A NO_TOKEN of an EXTEND call is taken away again. Nothing is new without new tokens, of which SGLang would take
        `output_ids[-0:]`, all of them, for the new ones.
        `StopRule.UPSTREAM` has reasons of its own.
        """
        if self.finished():
            return
        if new_accepted_len is not None:
            self._drop_logprobs_of_no_token()
            end_step(self, new_accepted_len)
            METER.num_decoded += new_accepted_len
        if (
            self.grammar is not None
            and getattr(self.to_finish, "status_code", None) == HTTPStatus.INTERNAL_SERVER_ERROR
        ):
            # The grammar's mask is in the logits: a token that it does not accept means that it accepts none.
            self.to_finish.status_code = HTTPStatus.BAD_REQUEST
        num_new = 1 if new_accepted_len is None else new_accepted_len
        if self.output_ids[-1:].tolist() == [NO_TOKEN]:
            self.output_ids.pop()
            num_new = 0
        if self.to_finish or (num_new > 0 and not _end_by_upstream_rule(self)):
            self._finish_in_order(num_new)
            if self.finished() and new_accepted_len:
                num_behind = len(self.output_ids) - len(self.output_ids_through_stop)
                state_of(self).end_answer(max(num_new - num_behind, 0))
        if new_accepted_len is None:
            count_extend(self)
        if self.finished():
            count_end(self)
        # SGLang takes every step for a verification: `meta_info` shall say nothing of that.
        self.spec_verify_ct = 0

    def _drop_logprobs_of_no_token(self) -> None:
        """Take away what SGLang noted of the NO_TOKEN of an EXTEND call, behind `update_finish_state`."""
        logprob = self.logprob
        if not self.return_logprob or logprob.output_token_logprobs_idx[-1:] != [NO_TOKEN]:
            return
        for found in (
            logprob.output_token_logprobs_val,
            logprob.output_token_logprobs_idx,
            *((logprob.output_top_logprobs_val, logprob.output_top_logprobs_idx) if logprob.top_logprobs_num else ()),
            *(
                (logprob.output_token_ids_logprobs_val, logprob.output_token_ids_logprobs_idx)
                if logprob.token_ids_logprob is not None
                else ()
            ),
        ):
            found.pop()

    def log_time_stats(self) -> None:
        """Log what SGLang does, of the answer without the tokens behind its end."""
        tokens, self.output_ids = self.output_ids, self.output_ids_through_stop
        super().log_time_stats()
        self.output_ids = tokens

    def _finish_in_order(self, num_new: int) -> None:
        """Finish if one of the `num_new` last tokens is a reason to, as if they had come one by one.

        SGLang looks for strings in all of them before it looks for tokens, and for each string in turn.
        """
        params, length = self.sampling_params, len(self.output_ids)
        may_meet = params.stop_strs or params.stop_regex_strs or length >= params.max_new_tokens
        if self.to_finish or num_new == 1 or not may_meet:
            super().update_finish_state(num_new)
        else:
            new = self.output_ids[length - num_new :]
            del self.output_ids[length - num_new :]
            for position, token in enumerate(new):
                self.output_ids.append(token)
                super().update_finish_state(1)
                if self.finished():
                    self.output_ids.extend(new[position + 1 :])
                    break
        if isinstance(self.finished_reason, FINISH_MATCHED_STR):
            self.finished_reason.matched = self._first_stop(self.finished_reason.matched)
        if self.finished():
            self.reasoning_tokens = min(self.reasoning_tokens, len(self.output_ids_through_stop))

    def _first_stop(self, matched: str) -> str:
        """Return the stop string that begins first in the finished answer; `matched` is one that it ends with."""
        text = self.tokenizer.decode(self.output_ids_through_stop[-self._stop_match_tail_len(1) :])
        places = {text.find(stop): stop for stop in self.sampling_params.stop_strs if stop in text}
        return places[min(places)] if places else matched

    def owned_kv_len(self) -> int:
        """Return how many tokens have KV that may go to the prefix cache; the slots of the others are freed."""
        owned: int = super().owned_kv_len()
        return min(owned, shareable_len(self, current().commit))


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


def _has_news(req: ReqLike) -> bool:
    """Return whether there is something to send: an end, or new tokens that are not taken back again."""
    may_shrink = state_of(req).plan.may_shrink
    return req.finished() or (len(req.output_ids) > req.send_token_offset and not may_shrink)


def _end_by_upstream_rule(req: ReqLike) -> bool:
    """Finish `req` if the rule it asked for ends it with the block that is complete now; return whether it does."""
    state = state_of(req)
    if req.finished() or state.plan.stop_rule is not StopRule.UPSTREAM:
        return False
    eos, num_prompt = current().checkpoint.eos_token_ids[0], len(req.origin_input_ids)
    if (num_prompt + len(req.output_ids)) % state.current.block_length:
        return False
    length = ended_length([*req.origin_input_ids, *req.output_ids], eos)
    if length is None or length > num_prompt + (req.sampling_params.max_new_tokens or 0):
        return False
    # A prompt is never cut: the answer is empty then.
    req.finished_len = max(length - num_prompt, 0)
    req.finished_reason = FINISH_MATCHED_TOKEN(eos if req.output_ids_through_stop[-1:].tolist() == [eos] else None)
    return True


def _reserve() -> int:
    """Return the number of slots that a step may reserve behind what a request has committed."""
    return int(get_alloc_reserve_per_decode() + get_alloc_page_size() - 1)
