"""What a request may ask of vLLM, and what it is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from golden import TRAINED

PROMPT = [1, 145, 20, 33, 48, 50, 61, 77]
LONG = {"max_tokens": 24, "ignore_eos": True}
MODES = ("autoregressive", "self_speculation", "diffusion")

Start, Ask = Callable[..., Any], Callable[..., list[Any]]

REFUSED = [
    ({"extra_args": {"mode": "fast"}}, "vllm_xargs.mode = 'fast'"),
    ({"extra_args": {"threshold": 2.0}}, "vllm_xargs.threshold = 2.0"),
    ({"extra_args": {"blocklength": 8}}, "did you mean 'block_length'"),
    ({"extra_args": {"block_length": 64}}, "at most 32, the largest of the server's routing.widths"),
    ({"extra_args": {"mode": "diffusion"}, "logprobs": 1}, "does not support logprobs"),
    ({"extra_args": {"block_length": 8}, "presence_penalty": 1.0}, "which presence_penalty needs"),
    ({"extra_args": {"history": True}}, "not supported on vLLM"),
    ({"extra_args": {"speculation": "one_forward"}}, "not supported on vLLM"),
    (
        {"extra_args": {"mode": "diffusion"}, "max_tokens": 500},
        "at most 497 (context length 512, less the 7 further tokens of a block",
    ),
]


@pytest.mark.parametrize(("params", "reason"), REFUSED)
def test_refused(params: dict[str, Any], reason: str, start: Start, ask: Ask) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError) as refused:
        ask(start(TRAINED), [(PROMPT, params)])
    assert reason in str(refused.value)


def test_a_batch_of_any_mix_answers_as_each_alone(start: Start, ask: Ask) -> None:
    """Sampled tokens are a function of seed, position and token, so self-speculation has those of autoregression."""
    requests = [
        (PROMPT, {**LONG, "temperature": 0.9, "top_p": 0.95, "min_p": 0.01, "seed": seed, "extra_args": {"mode": mode}})
        for seed in (1, 2)
        for mode in MODES
    ]
    together = [each.token_ids for each in ask(start(TRAINED), requests)]
    assert together == [ask(start(TRAINED), [request])[0].token_ids for request in requests]
    assert together[0] == together[1]
    assert together[3] == together[4]
    assert together[0] != together[3]


def test_what_only_autoregression_has_goes_with_the_mode_auto(start: Start, ask: Ask) -> None:
    plain, biased, penalised, scored, diffused = ask(
        start(TRAINED),
        [
            (PROMPT, LONG),
            (PROMPT, {**LONG, "logit_bias": {77: 100.0}}),
            (PROMPT, {**LONG, "logit_bias": {77: 100.0, 78: 100.0}, "frequency_penalty": 2.0}),
            (PROMPT, {**LONG, "logprobs": 2}),
            (PROMPT, {**LONG, "extra_args": {"mode": "diffusion"}}),
        ],
    )
    assert set(biased.token_ids) == {77}
    assert set(penalised.token_ids) == {77, 78}
    assert scored.token_ids == plain.token_ids
    assert all(top[token].rank == 1 for token, top in zip(scored.token_ids, scored.logprobs, strict=True))
    assert diffused.logprobs is None
    forwards = [each.spec_decode_metrics.to_dict()["num_spec_steps"] for each in (plain, biased, scored)]
    assert forwards[1:] == [LONG["max_tokens"] - 1] * 2
    assert forwards[0] < forwards[1]


def test_a_grammar_goes_with_the_mode_auto(start: Start, ask: Ask) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    digits = {"max_tokens": 8, "structured_outputs": StructuredOutputsParams(regex="[0-9]{3}")}
    asked, beside = ask(start(TRAINED), [(PROMPT, digits), (PROMPT, LONG)])
    assert asked.text.isdigit()
    assert len(asked.text) == 3
    assert beside.token_ids == ask(start(TRAINED), [(PROMPT, LONG)])[0].token_ids


@pytest.mark.parametrize("mode", MODES)
def test_ends(mode: str, start: Start, ask: Ask) -> None:
    """A stop id ends an answer where it stands, in the middle of a block too; so does a length."""
    options = {"extra_args": {"mode": mode}}
    [whole] = ask(start(TRAINED), [(PROMPT, {**LONG, **options})])
    ids = list(whole.token_ids)
    stop = next(token for token in ids[5:] if token not in ids[:5])
    stopped, short = ask(
        start(TRAINED),
        [(PROMPT, {**LONG, **options, "stop_token_ids": [stop]}), (PROMPT, {**LONG, **options, "max_tokens": 11})],
    )
    assert (list(stopped.token_ids), stopped.stop_reason) == (ids[: ids.index(stop) + 1], stop)
    assert (list(short.token_ids), short.finish_reason) == (ids[:11], "length")
