"""A grammar is moved along a draft and back, and fills a mask behind each token that it allows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dlm_serve.sglang.engine.grammar_masks import GrammarMasks, fill_along

VOCAB_SIZE = 40
END = 39


class Counting:
    """Allows the successor of the last token, or the end behind an even one."""

    def __init__(self, last: int) -> None:
        self.accepted = [last]

    def allowed(self) -> set[int]:
        last = self.accepted[-1]
        return {last + 1, END} if last % 2 == 0 else {last + 1}

    def accept_token(self, token: int) -> None:
        if token not in self.allowed():
            raise ValueError(token)
        self.accepted.append(token)

    def rollback(self, k: int) -> None:
        del self.accepted[-k:]

    def is_terminated(self) -> bool:
        return self.accepted[-1] == END

    def allocate_vocab_mask(self, vocab_size: int, batch_size: int, device: str) -> torch.Tensor:
        return torch.full((batch_size, (vocab_size + 31) // 32), -1, dtype=torch.int32)

    def fill_vocab_mask(self, vocab_mask: torch.Tensor, idx: int) -> None:
        words = [0] * vocab_mask.shape[1]
        for token in self.allowed():
            words[token // 32] |= 1 << token % 32
        vocab_mask[idx] = torch.tensor(words).int()

    move_vocab_mask = staticmethod(torch.Tensor.to)

    @staticmethod
    def apply_vocab_mask(logits: torch.Tensor, vocab_mask: torch.Tensor) -> None:
        bits = torch.arange(logits.shape[1])
        is_allowed = vocab_mask[:, bits // 32] >> (bits % 32) & 1
        logits.masked_fill_(is_allowed == 0, float("-inf"))


@pytest.mark.parametrize(
    ("tokens", "allowed"),
    [
        pytest.param([4, 5, 6, END], [{5, END}, {6}, {7, END}, None], id="to its end"),
        pytest.param([4, 5, 6, 7], [{5, END}, {6}, {7, END}, {8}], id="all allowed"),
        pytest.param([4, 9, 10, 11], [{5, END}, None, None, None], id="the first is not allowed"),
        pytest.param([5, 6, 6, 7], [{6}, {7, END}, None, None], id="one is not allowed"),
        pytest.param([4, VOCAB_SIZE + 100, 5, 6], [{5, END}, None, None, None], id="outside the vocabulary"),
        pytest.param([4], [{5, END}], id="a single token"),
    ],
)
def test_along_a_draft(tokens: list[int], allowed: list[set[int] | None]) -> None:
    grammar = Counting(tokens[0])
    masks = grammar.allocate_vocab_mask(VOCAB_SIZE, len(tokens), "cpu")
    fill_along(grammar, tokens, masks)
    found = [{token for token in range(VOCAB_SIZE) if int(row[token // 32]) >> token % 32 & 1} for row in masks]
    assert found == [set(range(VOCAB_SIZE)) if tokens is None else tokens for tokens in allowed]
    assert grammar.accepted == [tokens[0]], "the grammar is where it was"


@pytest.mark.parametrize("rows", [[[4, 5, 6], [7, 9, 9]], [[4, 5, 6]]], ids=["rows", "a row"])
@pytest.mark.parametrize("width", [1, 3, 5])
def test_logits_of_any_width(width: int, rows: list[list[int]]) -> None:
    """Of as many positions as the rows have tokens, fewer, or more: a graph may be wider."""
    reqs: list[Any] = [SimpleNamespace(grammar=Counting(tokens[0])) for tokens in rows]
    logits = torch.zeros(len(rows), width, VOCAB_SIZE)
    GrammarMasks(reqs, torch.tensor(rows), VOCAB_SIZE).apply_(logits)
    finite = [
        [set(logits[row, i].isfinite().nonzero().flatten().tolist()) for i in range(width)] for row in range(len(rows))
    ]
    anything = set(range(VOCAB_SIZE))
    expected = [[{5, END}, {6}, {7, END}, anything, anything], [{8}, anything, anything, anything, anything]]
    assert finite == [row[:width] for row in expected[: len(rows)]]
