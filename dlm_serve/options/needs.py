"""What a request asks for besides how it decodes, and which modes honour it."""

from __future__ import annotations

from typing import NamedTuple

from dlm_serve.decoding import ConcreteMode, Mode
from dlm_serve.families import Family

# What depends on one token following another, with the values that ask for nothing.
SEQUENTIAL: dict[str, tuple[object, ...]] = {
    "return_logprob": (None, False),
    "json_schema": (None, ""),
    "regex": (None, ""),
    "ebnf": (None, ""),
    "structural_tag": (None, ""),
    "frequency_penalty": (None, 0.0),
    "presence_penalty": (None, 0.0),
    "repetition_penalty": (None, 1.0),
    "logit_bias": (None, {}),
    "min_new_tokens": (None, 0),
    "custom_logit_processor": (None, ""),
}

_ONE_AT_A_TIME = ("custom_logit_processor",)
"""Code that is not ours and looks at the tokens so far, each of which it must know."""


THINKING_BUDGET = "max_thinking_tokens"
"""The option that is one, too: it says when a token must follow."""

_OF_BLOCKS = ("return_logprob", THINKING_BUDGET)
"""What a block has, too, that another forward commits: log-probabilities, and a token that stands in it from the
beginning."""


class Need(NamedTuple):
    """One of them."""

    field: str
    """The engine's."""
    written: str
    """As the request names it."""
    one_at_a_time: bool = False
    """Whether the engine gives it to tokens that are decoded one at a time alone."""


def honours(mode: ConcreteMode, need: Need, family: Family) -> bool:
    """Return whether a mode of `family` gives what a request needs.

    Self-speculation verifies each token behind those before it, as autoregression predicts it. A denoised block has
    `_OF_BLOCKS` where another forward commits it, one token behind the other.
    """
    if need.one_at_a_time:
        return mode is Mode.AUTOREGRESSIVE
    if mode is Mode.SELF_SPECULATION:
        return need.field not in _ONE_AT_A_TIME
    return mode is Mode.AUTOREGRESSIVE or (need.field in _OF_BLOCKS and family.commit.scores_tokens)
