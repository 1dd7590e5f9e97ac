"""Rules on logits: what SGLang's penalizers do, and along a draft what they would do token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dlm_serve.decoding.logit_rules import LogitRules, RuledRows

VOCAB, WIDTH, PROMPT_LEN = 23, 6, 4
STOPS = {3, 7, VOCAB + 5}  # a tokenizer may know more tokens than the model
ANSWER = [1, 2, 2, 9]

RULES: dict[str, dict[str, Any]] = {
    "frequency": {"frequency_penalty": 0.7},
    "presence": {"presence_penalty": -1.5},
    "repetition": {"repetition_penalty": 1.8},
    "length": {"min_new_tokens": len(ANSWER) + 3},
    "bias": {"logit_bias": ((0, 5.0), (9, -100.0))},
    "end of thinking": {"max_thinking_tokens": len(ANSWER) + 2, "end_think_token_id": 11},
    "end of thinking that is there": {"max_thinking_tokens": 2, "end_think_token_id": 9},
    "all": {
        "max_thinking_tokens": len(ANSWER) + 3,
        "end_think_token_id": 12,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.9,
        "repetition_penalty": 0.8,
        "min_new_tokens": len(ANSWER) + 2,
        "logit_bias": ((2, 1.5), (3, 2.0)),
    },
}


def ruled(rules: LogitRules, counts: torch.Tensor | None = None, row: int = 0) -> RuledRows:
    """Behind ANSWER, in a row of `counts`, or of a table of its own that a request before has left as it was."""
    table = torch.full((1, VOCAB), 7, dtype=torch.int32) if counts is None else counts
    return RuledRows.of(rules, STOPS, PROMPT_LEN, ANSWER, table, torch.tensor([row]))


def by_definition(rules: LogitRules, logits: torch.Tensor, answer: list[int]) -> torch.Tensor:
    """The logits [V] of the next token of `answer`, one token at a time in plain Python."""
    changed = logits.tolist()
    for token in range(VOCAB):
        count = answer.count(token)
        value = changed[token] - rules.frequency_penalty * count - rules.presence_penalty * (count > 0)
        if count:
            value = value * rules.repetition_penalty if value < 0 else value / rules.repetition_penalty
        changed[token] = value + dict(rules.logit_bias).get(token, 0.0)
        if token in STOPS and len(answer) < rules.min_new_tokens:
            changed[token] = float("-inf")
    budget, end = rules.max_thinking_tokens, rules.end_think_token_id
    if budget is not None and len(answer) >= budget and end not in answer:
        changed = [0.0 if token == end else float("-inf") for token in range(VOCAB)]
    return torch.tensor(changed)


@pytest.mark.parametrize("name", RULES)
def test_along_a_draft(name: str) -> None:
    """At each position as if the tokens before it had been answered one by one; drafts repeat themselves."""
    rules = LogitRules(**RULES[name])
    logits = torch.randn(1, WIDTH, VOCAB, generator=torch.manual_seed(1)) * 3
    tokens = torch.tensor([[ANSWER[-1], 5, 2, 5, 5, 9]])
    adjusted = logits.clone()
    ruled(rules).adjust_(adjusted, tokens, torch.tensor([PROMPT_LEN + len(ANSWER) - 1]))
    for position in range(WIDTH):
        answer = ANSWER + tokens[0, 1 : position + 1].tolist()
        expected = by_definition(rules, logits[0, position], answer)
        torch.testing.assert_close(adjusted[0, position], expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_a_draft_rounds_as_single_tokens_do(name: str) -> None:
    """Bit by bit, so that near-ties fall the same way."""
    rules = LogitRules(**RULES[name])
    logits = torch.randn(1, WIDTH, VOCAB, generator=torch.manual_seed(2))
    tokens = torch.tensor([[ANSWER[-1], 4, 4, 1, 7, 4]])
    together = logits.clone()
    ruled(rules).adjust_(together, tokens, torch.tensor([PROMPT_LEN + len(ANSWER) - 1]))
    one_by_one, rows = logits.clone(), ruled(rules)
    for position in range(WIDTH):
        if position:
            rows.count_(tokens[:, position, None], torch.ones(1, dtype=torch.int32))
        committed = torch.tensor([PROMPT_LEN + len(ANSWER) - 1 + position])
        rows.adjust_(one_by_one[:, position, None], tokens[:, position, None], committed)
    assert torch.equal(together, one_by_one)


def test_what_changes_nothing() -> None:
    logits = torch.randn(1, WIDTH, VOCAB)
    adjusted = logits.clone()
    ruled(LogitRules()).adjust_(adjusted, torch.zeros(1, WIDTH, dtype=torch.int64), torch.tensor([PROMPT_LEN]))
    assert torch.equal(adjusted, logits)


def test_rows_of_a_batch_keep_to_themselves() -> None:
    """Stacked in another order with rows of other rules, of which some list more ids; and what others count stays."""
    kinds = [LogitRules(**rules) for rules in RULES.values()]
    apart = [ruled(rules) for rules in kinds]
    counts = torch.zeros(len(kinds) + 2, VOCAB, dtype=torch.int32)
    places = [(5 * i + 3) % len(kinds) + 1 for i in range(len(kinds))]
    stacked = RuledRows.stack([ruled(rules, counts, row) for rules, row in zip(kinds, places, strict=True)])
    tokens = torch.randint(0, VOCAB, (len(kinds), WIDTH), generator=torch.manual_seed(3))
    lens = torch.arange(len(kinds), dtype=torch.int32)
    stacked.count_(tokens, lens)
    for i, place in enumerate(places):
        answer = torch.tensor([*ANSWER, *tokens[i, : lens[i]]])
        assert torch.equal(counts[place], torch.bincount(answer, minlength=VOCAB).int())
    assert not counts[[0, -1]].any()
    logits = torch.randn(len(kinds), WIDTH, VOCAB)
    committed = torch.full((len(kinds),), PROMPT_LEN + len(ANSWER) - 1) + lens
    adjusted = logits.clone()
    stacked.adjust_(adjusted, tokens, committed)
    for i, row in enumerate(apart):
        row.count_(tokens[i, None], lens[i, None])
        alone = logits[i, None].clone()
        row.adjust_(alone, tokens[i, None], committed[i, None])
        assert torch.equal(adjusted[i, None], alone)
