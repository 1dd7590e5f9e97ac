"""Steps that emit nothing for a row, where an answer ends, and what a request is told about its decoding.

All are hooks on SGLang's scheduler process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dlm_serve.decoding import Mode, StopRule
from dlm_serve.decoding.endings import ended_length
from dlm_serve.engine.requests import PLAN_KEY, record_of, shareable_len, statistics_of
from dlm_serve.engine.serving import current
from dlm_serve.errors import ConfigError


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


def check_new_tokens(original: Callable[..., None], req: Any, new_accepted_len: int = 1) -> None:
    """Around `Req.update_finish_state`: no new token, no new reason to finish; and what `StopRule.UPSTREAM` says.

    Without new tokens SGLang would take `output_ids[-0:]`, all of them, for the new ones.
    """
    if req.to_finish or (new_accepted_len > 0 and not _end_by_upstream_rule(req)):
        original(req, new_accepted_len)


def _end_by_upstream_rule(req: Any) -> bool:
    """Finish SGLang's `req` if the rule it asked for ends it with the block that is complete now."""
    plan = record_of(req).plan
    if req.finished() or plan.stop_rule is not StopRule.UPSTREAM:
        return False
    eos, num_prompt = current().checkpoint.eos_token_ids[0], len(req.origin_input_ids)
    if (num_prompt + len(req.output_ids)) % plan.block_length:
        return False
    length = ended_length([*req.origin_input_ids, *req.output_ids], eos)
    if length is None or length > num_prompt + req.sampling_params.max_new_tokens:
        return False
    from sglang.srt.managers.schedule_batch import FINISH_MATCHED_TOKEN

    # A prompt is never cut: the answer is empty then.
    req.finished_len = max(length - num_prompt, 0)
    req.finished_reason = FINISH_MATCHED_TOKEN(eos if req.output_ids_through_stop[-1:].tolist() == [eos] else None)
    return True


def skip_output_without_tokens(original: Callable[..., None], accumulator: Any, *, req: Any) -> None:
    """Around `_GenerationStreamAccumulator.accept`: no chunk without new tokens, nor of such that may be taken back."""
    may_shrink = record_of(req).plan.stop_rule is StopRule.UPSTREAM
    if req.finished() or (len(req.output_ids) > req.send_token_offset and not may_shrink):
        original(accumulator, req=req)


def remember_emitted(result: None, req: Any, num_emitted: int) -> None:
    """After `Req.update_spec_correct_drafts_histogram`, by which SGLang counts each decode step of the request."""
    record_of(req).last_emitted = num_emitted


def own_what_is_shareable(owned_len: int, req: Any) -> int:
    """After `Req.owned_kv_len`: only KV that others may use goes to the prefix cache, the rest is given back."""
    return min(owned_len, shareable_len(req, current().policy))


def room_for_reserve(extra_len: int) -> int:
    """After `get_req_to_token_extra_context_len`: a row holds all slots that a step may reserve."""
    return max(extra_len, _reserve())


def longest_that_fits(info: tuple[Any, ...], worker: Any) -> tuple[Any, ...]:
    """After `TpModelWorker.get_worker_info`: alone in the pool, a request of the greatest length can take every step.

    Raises ConfigError where the pool has no room for any.
    """
    total, max_req_len, max_req_input_len = info[0], info[4], info[5]
    beyond_prompt, longest = max_req_len - max_req_input_len, min(max_req_len, total - _reserve())
    if longest <= beyond_prompt:
        raise ConfigError("--max-total-tokens", total, f"a step alone reserves {_reserve()} of them", "raise it")
    return (*info[:4], longest, longest - beyond_prompt, *info[6:])


def _reserve() -> int:
    """Slots that a step may reserve behind what a request has committed."""
    from sglang.srt.mem_cache.allocation_sizing import get_alloc_page_size, get_alloc_reserve_per_decode

    return int(get_alloc_reserve_per_decode() + get_alloc_page_size() - 1)
