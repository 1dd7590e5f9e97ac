"""vLLM's scheduler, where a request's row is as wide as its blocks, and a step may emit nothing."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from dlm_serve.vllm import ledger
from dlm_serve.vllm.request import settings_of


class _Row(NamedTuple):
    """What a request does in a step."""

    is_chunk: bool
    """Whether it encodes a part of a prompt of which more is to come."""
    decodes: bool
    """Whether it begins with its pending token, and runs its whole block."""


class DlmScheduler(AsyncScheduler):  # type: ignore[misc]  # the base is untyped
    """Schedules blocks as vLLM does drafted tokens: a pending token, which has no KV yet, and what is behind it.

    A step may be scheduled before the one before it is known. As for drafted tokens, all of that one counts as emitted
    until it is; where a request really stands is in the model runner.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Requests count their forwards where vLLM counts verifications, and report them with their last token.
        self.spec_decode_metrics_level = "summary"
        # Without a lookup vLLM would pad a prompt of which one token is left to the width of a block.
        self.dynamic_sd_lookup: Mapping[int, int] = defaultdict(lambda: self.num_spec_tokens)
        self._in_flight: deque[dict[str, _Row]] = deque()
        ledger.put_on(self.kv_cache_manager.coordinator, ledger.COMMITTED_KV)

    def schedule(self, throttle_prefills: bool = False) -> Any:
        """Schedule a step in which each running request has a whole block; its tokens are in the model runner."""
        for request in self.running:
            if request.is_prefill_chunk:
                continue
            block_length = settings_of(request.sampling_params).block_length
            request.spec_token_ids = [-1] * (block_length - 1)
            # At the end of the context a row that is in flight leaves no room for a whole one, but only until it is
            # known; rows that are cut advance nothing, and could follow each other for ever.
            room = self.max_model_len - request.num_computed_tokens - 1
            if request.num_output_placeholders and room < block_length:
                request.next_decode_eligible_step = self.current_step + 2  # the step after this one
        return super().schedule(throttle_prefills)

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        """Note what the requests of a step do in it, before they count as if they had."""
        scheduled = scheduler_output.num_scheduled_tokens
        self._in_flight.append({req_id: _row(self.requests[req_id], number) for req_id, number in scheduled.items()})
        super()._update_after_schedule(scheduler_output)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take what a step emitted. Where that is nothing, the pending token of a request is to be encoded again."""
        rows = self._in_flight.popleft()
        for req_id, num_scheduled in scheduler_output.num_scheduled_tokens.items():
            request, row = self.requests.get(req_id), rows[req_id]
            if request is None or request.is_finished() or row.is_chunk:
                continue
            emits = bool(model_runner_output.sampled_token_ids[model_runner_output.req_id_to_index[req_id]])
            drafts = scheduler_output.scheduled_spec_decode_tokens.get(req_id, ())
            if row.decodes and not (emits and drafts):  # which vLLM counts
                request.spec_decode_metrics.observe(num_scheduled - 1, 0)
            # Of a request that was preempted since, vLLM counts nothing as computed any more.
            if not emits and not request.num_stale_output_tokens:
                request.num_computed_tokens -= 1 + len(drafts)
                request.num_output_placeholders -= 1 + len(drafts)
        return super().update_from_output(scheduler_output, model_runner_output)


def _row(request: Any, num_scheduled: int) -> _Row:
    """Return what a request does that is about to run `num_scheduled` tokens."""
    num_tokens = request.num_tokens + request.num_output_placeholders
    is_whole = num_scheduled >= settings_of(request.sampling_params).block_length
    has_pending = num_tokens > request.num_prompt_tokens and request.num_computed_tokens == num_tokens - 1
    return _Row(request.num_computed_tokens + num_scheduled < num_tokens, is_whole and has_pending)


def cache_committed(original: Callable[..., None], request: Any, num_computed_tokens: int, *args: Any) -> None:
    """Around a coordinator's `cache_blocks`: keep KV of pending tokens out of the prefix cache."""
    original(request, min(num_computed_tokens, request.num_tokens - 1), *args)
