"""vLLM's scheduler, where a request's row is as wide as its blocks, and a step may emit nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from dlm_serve.vllm import ledger
from dlm_serve.vllm.request import settings_of


class DlmScheduler(Scheduler):  # type: ignore[misc]  # the base is untyped
    """Schedules blocks as vLLM does drafted tokens: a pending token, which has no KV yet, and what is behind it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Requests count their forwards where vLLM counts verifications, and report them with their last token.
        self.spec_decode_metrics_level = "summary"
        # Without a lookup vLLM would pad a prompt of which one token is left to the width of a block.
        self.dynamic_sd_lookup: Mapping[int, int] = defaultdict(lambda: self.num_spec_tokens)
        ledger.put_on(self.kv_cache_manager.coordinator, ledger.COMMITTED_KV)

    def schedule(self, throttle_prefills: bool = False) -> Any:
        """Schedule a step in which each running request has a whole block; its tokens are in the model runner."""
        for request in self.running:
            if not request.is_prefill_chunk:
                request.spec_token_ids = [-1] * (settings_of(request.sampling_params).block_length - 1)
        return super().schedule(throttle_prefills)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take what a step emitted. Where that is nothing, the pending token of a request is to be encoded again."""
        for req_id, num_scheduled in scheduler_output.num_scheduled_tokens.items():
            request = self.requests.get(req_id)
            if request is None or request.is_finished() or request.is_prefill_chunk:
                continue
            emits = bool(model_runner_output.sampled_token_ids[model_runner_output.req_id_to_index[req_id]])
            has_drafts = req_id in scheduler_output.scheduled_spec_decode_tokens
            if _decodes(request, num_scheduled) and not (emits and has_drafts):  # which vLLM counts
                request.spec_decode_metrics.observe(num_scheduled - 1, 0)
            if not emits:
                request.num_computed_tokens = request.num_tokens - 1
        return super().update_from_output(scheduler_output, model_runner_output)


def _decodes(request: Any, num_scheduled: int) -> bool:
    """Return whether a request that ran `num_scheduled` tokens began with its pending one, and ran its whole block."""
    began_at: int = request.num_computed_tokens - num_scheduled
    is_whole = num_scheduled >= settings_of(request.sampling_params).block_length
    return is_whole and bool(request.num_output_tokens) and began_at == request.num_tokens - 1


def cache_committed(original: Callable[..., None], request: Any, num_computed_tokens: int, *args: Any) -> None:
    """Around a coordinator's `cache_blocks`: keep KV of pending tokens out of the prefix cache."""
    original(request, min(num_computed_tokens, request.num_tokens - 1), *args)
