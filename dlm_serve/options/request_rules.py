"""Decide what a request may ask for and make its decode plan, from values alone: SGLang is not needed for that."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter

from dlm_serve.decoding import Commit, DecodePlan, LogitRules, StopRule
from dlm_serve.errors import OptionError
from dlm_serve.families import Family
from dlm_serve.options.misplaced import OPTIONS_KEY, refuse_misplaced
from dlm_serve.options.needs import SEQUENTIAL, Need
from dlm_serve.options.request import OPTIONS_FIELD, RequestOptions
from dlm_serve.options.resolve import resolve
from dlm_serve.options.server_file import ServerConfig
from dlm_serve.options.written import as_written

PLAN_KEY = "dlm_plan"
"""Where in `custom_params` the decode plan travels to the scheduler's process, as JSON. Not a client's to send."""

PLAN = TypeAdapter(DecodePlan)
"""Writes plans as JSON, and reads them."""

# What no mode honours, with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "beam_width": (None, 1),
    "input_embeds": (None,),
    "positional_embed_overrides": (None,),
    "return_hidden_states": (None, False),
    "return_sampling_mask": (None, False),
    "session_params": (None,),
    "watermark": (None, False),
}

# What cannot go with a rule that looks at whole blocks and may take back tokens, with the values that ask for nothing.
NOT_WITH_UPSTREAM_STOPS: dict[str, tuple[object, ...]] = {
    "ignore_eos": (None, False),
    "stop_token_ids": (None, []),
    "stream": (None, False),
}

FIELDS = (
    *SEQUENTIAL,
    *UNSUPPORTED,
    *NOT_WITH_UPSTREAM_STOPS,
    "custom_params",
    "top_logprobs_num",
    "logprob_start_len",
    "token_ids_logprob",
)
"""The fields of a request on which its plan depends."""

LISTS_OF_TOKEN_IDS = ("stop_token_ids", "token_ids_logprob", "logit_bias")
"""Those of them that list token ids."""

# SGLang keeps this many positions of the context for itself (`TpModelWorker.get_worker_info`,
# `Scheduler.init_req_max_new_tokens`) and would drop that many tokens from an answer without a word.
RESERVED_CONTEXT = 2

MOST_SAMPLES = 1024
"""`n` of a request, which is copied so often before the first sample begins."""

BEYOND_PROMPT = 4
"""A request may be this much longer than a prompt (`TpModelWorker.get_worker_info`)."""

_REMEMBERED_PLANS = 1024


@dataclass(frozen=True, eq=False)
class RequestRules:
    """What requests may ask of one checkpoint under one server file."""

    config: ServerConfig
    family: Family
    commit: Commit
    block_size: int
    vocab_size: int
    mask_token_id: int
    end_think_token_id: int | None

    def __post_init__(self) -> None:
        # A streaming request asks twice: before its stream begins, and when it is tokenized.
        object.__setattr__(self, "_resolve", lru_cache(_REMEMBERED_PLANS)(self._resolve))

    def plan(self, values: Mapping[str, Any], written: Container[str] = ()) -> DecodePlan:
        """Return the plan of a request with the values of `FIELDS`; those that are missing ask for nothing.

        `written` are the fields of its body, by which refusals name what it asks for. Raises OptionError for what
        cannot be honoured.
        """
        for name, nothing in UNSUPPORTED.items():
            if values.get(name) not in nothing:
                raise OptionError(name, values[name], "diffusion language models do not support it", "leave it out")
        custom = values.get("custom_params") or {}
        if not isinstance(custom, dict):
            raise OptionError("custom_params", custom, "must be a mapping", "give options by name")
        if PLAN_KEY in custom:
            raise OptionError(
                f"custom_params.{PLAN_KEY}", custom[PLAN_KEY], "is set by the server", f"give options as {OPTIONS_KEY}"
            )
        refuse_misplaced({name: custom[name] for name in custom if name != OPTIONS_KEY}, "custom_params.")
        self._check_logprobs(values, written)
        for name in LISTS_OF_TOKEN_IDS:
            self.check_token_ids(name, values.get(name) or ())
        asked = (name for name, nothing in SEQUENTIAL.items() if values.get(name) not in nothing)
        needs = tuple(Need(name, as_written(name, written)) for name in asked)
        options = RequestOptions.parse(custom.get(OPTIONS_KEY))
        plan = self._resolve(options, frozenset(options.model_fields_set), needs)
        if plan.stop_rule is StopRule.UPSTREAM:
            _check_upstream_stops(values)
        return plan

    def _resolve(self, options: RequestOptions, given: frozenset[str], needs: tuple[Need, ...]) -> DecodePlan:
        """Resolve options; `given` tells apart those that are null from those that are absent, which compare equal."""
        plan = resolve(options, self.config, self.family, self.block_size, needs)
        if options.max_thinking_tokens is None:
            if options.end_think_token_id is not None:
                limit, remedy = "ends no thinking without max_thinking_tokens", "give both, or leave it out"
                raise OptionError(f"{OPTIONS_FIELD}.end_think_token_id", options.end_think_token_id, limit, remedy)
            return plan
        end = self.end_think_token_id if options.end_think_token_id is None else options.end_think_token_id
        if end is None:
            limit = "needs the token that ends thinking, and the tokenizer has no </think>"
            remedy = "say which it is by end_think_token_id"
            raise OptionError(f"{OPTIONS_FIELD}.max_thinking_tokens", options.max_thinking_tokens, limit, remedy)
        self.check_token_ids(f"{OPTIONS_FIELD}.end_think_token_id", [end])
        rules = LogitRules(max_thinking_tokens=options.max_thinking_tokens, end_think_token_id=end)
        return replace(plan, logit_rules=rules)

    def check_token_ids(self, field: str, token_ids: Iterable[int | str]) -> None:
        """Refuse what is not the id of a token: SGLang's scheduler indexes logits with what `field` lists."""
        allowed = range(self.vocab_size)
        outside = next((token_id for token_id in token_ids if _as_int(token_id) not in allowed), None)
        if outside is not None:
            limit = f"token ids must be in [0, {self.vocab_size})"
            raise OptionError(field, outside, limit, "use this model's tokenizer")

    def check_input_ids(self, input_ids: Sequence[int]) -> None:
        """Refuse an empty prompt, token ids outside the vocabulary and, in some families, the mask."""
        if not len(input_ids):
            raise OptionError("prompt", "", "has no tokens", "give at least one")
        self.check_token_ids("input_ids", input_ids)
        if self.commit.on_grid and self.mask_token_id in input_ids:
            raise OptionError(
                "input_ids", self.mask_token_id, "is the mask token, which decoding would fill in", "leave it out"
            )

    def check_prompt_length(self, num_input: int, most: int) -> None:
        """Refuse a prompt of more than `most` tokens, --max-prefill-tokens, where it takes a single forward."""
        if self.commit.prompt_mask.is_whole and num_input > most:
            raise OptionError(
                "prompt",
                f"{num_input} tokens",
                f"at most {most} (--max-prefill-tokens), because {self.family.name} encodes a prompt in one forward",
                "shorten the prompt, or raise --max-prefill-tokens",
            )

    def _check_logprobs(self, values: Mapping[str, Any], written: Container[str]) -> None:
        """Refuse numbers that SGLang's scheduler takes as they are, and dies of."""
        number, start = values.get("top_logprobs_num"), values.get("logprob_start_len")
        if isinstance(number, int) and not 0 <= number <= self.vocab_size:
            field = as_written("top_logprobs_num", written)
            raise OptionError(field, number, f"must be in [0, {self.vocab_size}]", "ask for fewer")
        if isinstance(start, int) and start < -1:
            raise OptionError("logprob_start_len", start, "must be at least -1", "give a position of the prompt")


def check_sampling_params(params: Mapping[str, Any]) -> None:
    """Refuse options outside `custom_params`, an `n` that is no number of samples, and patterns that do not compile."""
    refuse_misplaced(params, "sampling_params.")
    n = params.get("n", 1)
    if not isinstance(n, int) or not 1 <= n <= MOST_SAMPLES:
        raise OptionError("n", n, f"must be an integer from 1 to {MOST_SAMPLES}", "ask for one sample or more")
    patterns = params.get("stop_regex") or ()
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise OptionError("stop_regex", pattern, f"does not compile ({error})", "correct the pattern") from error


def longest_answer(
    asked: int | None,
    is_default: bool,
    num_input: int,
    longest: int,
    context_len: int,
    *,
    field: str = "max_new_tokens",
) -> int | None:
    """Return the `max_new_tokens` of a request, its `field`, which must fit behind its prompt of `num_input` tokens.

    `longest` is the length of the longest request, `is_default` whether the server asked rather than the client: that
    gives way to what fits. None is no limit of its own. Raises OptionError, also for a prompt too long for any answer.
    """
    is_whole = longest >= context_len - RESERVED_CONTEXT
    why = f"context length {context_len}" if is_whole else f"the KV cache holds requests of {longest} tokens"
    most = longest - num_input
    if most <= BEYOND_PROMPT:
        limit = f"at most {longest - BEYOND_PROMPT - 1} ({why})"
        raise OptionError("prompt", f"<{num_input} tokens>", limit, "shorten the prompt")
    if asked is None or asked <= most:
        return asked
    if is_default:
        return most
    limit = f"with {num_input} input tokens at most {most} ({why})"
    raise OptionError(field, asked, limit, "ask for fewer tokens or shorten the prompt")


def _as_int(token_id: int | str) -> int | None:
    """Return a token id as a number, which is text where it is the key of a mapping; None if it is no number."""
    try:
        return int(token_id)
    except ValueError:
        return None


def _check_upstream_stops(values: Mapping[str, Any]) -> None:
    for name, nothing in NOT_WITH_UPSTREAM_STOPS.items():
        value = values.get(name)
        if (sorted(value) if isinstance(value, set) else value) not in nothing:
            raise OptionError(
                name,
                value,
                "with stop_rule upstream only that rule ends an answer, and only after whole blocks",
                "leave it out, or use stop_rule eos",
            )
