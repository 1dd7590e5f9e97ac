"""SGLang's request, where steps may emit nothing and answers end by rules of their own."""

from __future__ import annotations

from array import array
from http import HTTPStatus
from typing import Any

from sglang.srt.managers.schedule_batch import FINISH_MATCHED_STR, FINISH_MATCHED_TOKEN, Req

from dlm_serve.decoding import StopRule
from dlm_serve.decoding.stop_rules import ended_length
from dlm_serve.sglang.engine.counting import METER, count_end, count_extend
from dlm_serve.sglang.engine.requests import NO_TOKEN, end_step, shareable_len, state_of
from dlm_serve.sglang.protocols import ReqLike
from dlm_serve.sglang.serving import current


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
        self._drop_logprobs_of_no_token()
        if new_accepted_len is not None:
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
        """Take away what SGLang noted of the NO_TOKEN of the EXTEND call before, behind `update_finish_state`.

        Another one may follow at once, where the request is retracted before a step of it is over.
        """
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
