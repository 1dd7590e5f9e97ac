"""Steps that emit nothing for a row, and what a request is told about its decoding.

All are hooks on SGLang's scheduler process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dlm_serve.decoding import Mode
from dlm_serve.engine.requests import PLAN_KEY, record_of, shareable_len, statistics_of
from dlm_serve.engine.serving import current


def report_statistics(streamer_class: type, scheduler: Any) -> type:
    """After `Scheduler.get_output_streamer_class`: each output carries the request's statistics."""

    class DlmOutputStreamer(streamer_class):  # type: ignore[misc]  # the base is given at run time
        has_additional_customized_info = True

        def build_additional_customized_info(self, reqs: list[Any]) -> dict[str, list[Any]]:
            return {PLAN_KEY: [[statistics_of(req)] for req in reqs]}

    return DlmOutputStreamer


def only_certain_to_emit(finishing: list[Any], scheduler: Any, batch: Any) -> list[Any]:
    """After `Scheduler._reqs_finishing_inflight`: a step ends a request by length only if it must emit."""
    return [req for req in finishing if record_of(req).plan.mode is Mode.AUTOREGRESSIVE]


def skip_check_without_tokens(original: Callable[..., None], req: Any, new_accepted_len: int = 1) -> None:
    """Around `Req.update_finish_state`: no new token, no new reason to finish.

    SGLang would take `output_ids[-0:]`, all tokens, for the new ones.
    """
    if new_accepted_len > 0 or req.to_finish:
        original(req, new_accepted_len)


def skip_output_without_tokens(original: Callable[..., None], accumulator: Any, *, req: Any) -> None:
    """Around `_GenerationStreamAccumulator.accept`: no new token, no stream chunk."""
    if req.finished() or len(req.output_ids) > req.send_token_offset:
        original(accumulator, req=req)


def remember_emitted(result: None, req: Any, num_emitted: int) -> None:
    """After `Req.update_spec_correct_drafts_histogram`, by which SGLang counts each decode step of the request."""
    record_of(req).last_emitted = num_emitted


def own_what_is_shareable(owned_len: int, req: Any) -> int:
    """After `Req.owned_kv_len`: only KV that others may use goes to the prefix cache, the rest is given back."""
    return min(owned_len, shareable_len(req, current().policy))


def room_for_reserve(extra_len: int) -> int:
    """After `get_req_to_token_extra_context_len`: a row holds all slots that a step may reserve."""
    from sglang.srt.mem_cache.allocation_sizing import get_alloc_page_size, get_alloc_reserve_per_decode

    return int(max(extra_len, get_alloc_reserve_per_decode() + get_alloc_page_size() - 1))
