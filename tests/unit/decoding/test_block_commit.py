"""Families whose blocks start as masks and are committed bidirectionally: one step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from dlm_serve.decoding import (
    BlockCommit,
    DecodePlan,
    Mode,
    ModeSettings,
    Phase,
    Prediction,
    PromptMask,
    RequestState,
    Rows,
)

MASK, STOP, VOCAB_SIZE = 0, 7, 16
COMMIT = BlockCommit(PromptMask.BIDIRECTIONAL)
ON_GRID = BlockCommit(PromptMask.BLOCK_CAUSAL, on_grid=True)
FREE = BlockCommit(PromptMask.BLOCK_CAUSAL)


def rows_of(tokens: Sequence[int], phase: Phase, num_emitted: int, width: int = 6, **settings: Any) -> Rows:
    """One row in the middle of a block."""
    asked = ModeSettings(Mode.DIFFUSION, len(tokens), **{"threshold": 0.9, "steps": len(tokens), **settings})
    rows = Rows.of([COMMIT.row_options(asked, 0, [STOP], VOCAB_SIZE)], width).start_masked_block(MASK)
    rows.tokens[0, : len(tokens)] = torch.tensor(tokens)
    return rows.replace(
        phase=torch.tensor([int(phase)], dtype=torch.int32),
        num_emitted=torch.tensor([num_emitted], dtype=torch.int32),
    )


def stepped(rows: Rows, ids: Sequence[int] = (), confidence: Sequence[float] = ()) -> tuple[Rows, list[int]]:
    """The row after a forward, and the tokens that it emitted."""
    padded = [torch.tensor([[*given, *[0] * (rows.width - len(given))]]) for given in (ids, confidence)]
    prediction = Prediction(padded[0].long(), padded[1].float(), torch.zeros(1, rows.width), padded[0].long())
    after, output = COMMIT.advance(rows, prediction, MASK)
    return after, output.tokens[0, : output.lens[0]].tolist()


@pytest.mark.parametrize("length", [1, 4])
def test_a_block_starts_as_masks_and_is_denoised(length: int) -> None:
    """Also one of a single token, which no earlier forward predicts."""
    asked = ModeSettings(Mode.DIFFUSION, length, 0.9, length)
    rows = Rows.of([COMMIT.row_options(asked, 0, [], VOCAB_SIZE)], 6).start_masked_block(MASK)
    assert (rows.phase.tolist(), rows.num_emitted.tolist(), rows.new_len.tolist()) == ([Phase.DENOISE], [0], [length])
    assert rows.tokens.tolist() == [[MASK] * 6]


@pytest.mark.parametrize(("phase", "keeps_kv"), [(Phase.DENOISE, False), (Phase.COMMIT, True)])
def test_every_forward_is_bidirectional_and_predicts_its_own_positions(phase: Phase, keeps_kv: bool) -> None:
    spec = COMMIT.attention_spec(rows_of([1, 2, 3], phase, 0), torch.tensor([20]), MASK)
    assert spec.visible.mask().tolist() == [[[True] * 3 + [False] * 3] * 6]
    assert spec.kept.tolist() == [[keeps_kv] * 3 + [False] * 3]
    assert (spec.shift.tolist(), spec.lora_on.tolist()) == ([[0] * 6], [[False] * 6])
    assert (spec.prefix_lens.tolist(), spec.positions.tolist()) == ([21], [[21, 22, 23, 24, 25, 26]])


@pytest.mark.parametrize(("num_emitted", "start"), [(0, 21), (1, 20), (3, 18)])
def test_where_a_row_starts(num_emitted: int, start: int) -> None:
    """Behind 20 committed tokens and one pending, whose KV is there already where none of the row is emitted."""
    assert rows_of([1, 2, 3], Phase.COMMIT, num_emitted).starts(torch.tensor([20])).tolist() == [start]


@pytest.mark.parametrize(
    ("tokens", "ids", "confidence", "num_emitted", "emitted", "phase"),
    [
        ([1, MASK, MASK], [9, 2, 3], [1.0, 0.95, 0.5], 0, [], Phase.DENOISE),
        ([1, MASK, MASK], [9, 2, 3], [1.0, 0.95, 0.95], 0, [1, 2, 3], Phase.COMMIT),
        ([MASK], [4], [0.1], 0, [4], Phase.COMMIT),
        ([1, MASK, MASK], [9, STOP, 3], [1.0, 0.95, 0.5], 0, [1, STOP], Phase.COMMIT),
        ([MASK, STOP, MASK], [9, 2, 3], [0.5, 0.0, 0.6], 0, [], Phase.DENOISE),
        ([STOP, 2, MASK, MASK], [9, 2, 3, 4], [1.0, 1.0, 0.95, 0.5], 2, [], Phase.DENOISE),
        ([STOP, 2, MASK, MASK], [9, 2, 3, 4], [1.0, 1.0, 0.95, 0.95], 2, [3, 4], Phase.COMMIT),
    ],
    ids=[
        "open",
        "settled",
        "one-token",
        "to-a-stop",
        "mask-before-the-stop",
        "stop-of-the-prompt",
        "behind-the-prompt",
    ],
)
def test_the_forward_that_settles_a_block_emits_it(
    tokens: list[int], ids: list[int], confidence: list[float], num_emitted: int, emitted: list[int], phase: Phase
) -> None:
    after, run = stepped(rows_of(tokens, Phase.DENOISE, num_emitted), ids, confidence)
    assert run == emitted
    assert after.phase.tolist() == [phase]
    assert after.num_emitted.tolist() == [num_emitted + len(emitted)]


def test_a_commit_emits_nothing_and_a_block_of_masks_follows() -> None:
    after, run = stepped(rows_of([1, 2, 3], Phase.COMMIT, 3), [9, 9, 9])
    assert run == []
    assert (after.phase.tolist(), after.num_emitted.tolist(), after.step.tolist()) == ([Phase.DENOISE], [0], [0])
    assert after.tokens.tolist() == [[MASK] * 6]


@pytest.mark.parametrize(("steps", "quotas"), [(1, [8]), (3, [3, 3, 2]), (5, [2, 2, 2, 1, 1]), (8, [1] * 8)])
def test_the_schedule_counts_all_tokens_of_a_block(steps: int, quotas: list[int]) -> None:
    """Reference: `get_num_transfer_tokens`."""
    rows, fixed = rows_of([MASK] * 8, Phase.DENOISE, 0, width=8, threshold=None, steps=steps), []
    while rows.phase.tolist() == [Phase.DENOISE]:
        before = int((rows.tokens == MASK).sum())
        rows, _ = stepped(rows, [2] * 8, [0.5] * 8)
        fixed.append(before - int((rows.tokens == MASK).sum()))
    assert fixed == quotas


# --- How the block behind an EXTEND begins, and who sees whom in it ---


def request() -> RequestState:
    return RequestState(DecodePlan((ModeSettings(Mode.DIFFUSION, 4, 0.9, 4),)))


@pytest.mark.parametrize(
    ("num_prompt", "num_output", "commit", "start"),
    [
        (6, 0, COMMIT, []),
        (6, 4, COMMIT, []),
        (6, 0, ON_GRID, [104, 105]),
        (6, 2, ON_GRID, []),
        (8, 0, ON_GRID, []),
        (1, 0, ON_GRID, [100]),
    ],
    ids=str,
)
def test_known_tokens_of_the_next_block(
    num_prompt: int, num_output: int, commit: BlockCommit, start: list[int]
) -> None:
    """The end of a prompt that ends within a block of the grid. A resumed request has emitted whole blocks."""
    tokens = [*range(100, 100 + num_prompt), *range(200, 200 + num_output)]
    assert commit.known_start(request(), tokens, num_prompt) == start


@pytest.mark.parametrize(
    ("mask", "on_grid", "num_prompt", "num_tokens", "ends"),
    [
        (PromptMask.BIDIRECTIONAL, False, 10, 10, [10]),
        (PromptMask.BIDIRECTIONAL, False, 10, 17, [10, 13, 16, 17]),
        (PromptMask.BLOCK_CAUSAL, False, 10, 10, [4, 8, 10]),
        (PromptMask.BLOCK_CAUSAL, False, 8, 8, [4, 8]),
        (PromptMask.BLOCK_CAUSAL, False, 10, 17, [4, 8, 10, 13, 16, 17]),
        (PromptMask.BLOCK_CAUSAL, True, 10, 17, [3, 6, 9, 12, 15, 17]),
        (PromptMask.BLOCK_CAUSAL, True, 3, 3, [3]),
    ],
)
def test_spans(mask: PromptMask, on_grid: bool, num_prompt: int, num_tokens: int, ends: list[int]) -> None:
    """Prompts in blocks of 4 where they have any, answers in blocks of 3; on the grid, all are blocks of 3."""
    commit = BlockCommit(mask, on_grid=on_grid)
    assert commit.span_ends(num_prompt, num_tokens, block_size=4, block_length=3) == ends


@pytest.mark.parametrize(
    ("commit", "num_prompt", "num_output", "num_encoded", "length"),
    [
        (ON_GRID, 8, 0, 8, 8),
        (ON_GRID, 10, 0, 10, 8),
        (ON_GRID, 10, 2, 10, 8),
        (ON_GRID, 10, 6, 10, 12),
        (ON_GRID, 10, 6, 16, 16),
        (FREE, 10, 6, 10, 8),
    ],
    ids=["prompt", "end of a prompt", "one block", "two blocks", "two blocks, resumed", "off the grid"],
)
def test_what_has_kv(commit: BlockCommit, num_prompt: int, num_output: int, num_encoded: int, length: int) -> None:
    """All blocks but the last that was emitted, and all that an EXTEND call encoded: SGLang shares those at once."""
    assert commit.shareable_len(request(), num_prompt, num_prompt + num_output, num_encoded, block_size=4) == length
