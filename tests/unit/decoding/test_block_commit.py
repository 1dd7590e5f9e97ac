"""Families whose blocks start as masks and are committed bidirectionally: one step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from dlm_serve.decoding import (
    BlockCommit,
    DecodePlan,
    FirstBlock,
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
    prediction = Prediction(padded[0].long(), padded[1].float(), torch.zeros(1, rows.width))
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
    spec = COMMIT.attention_spec(rows_of([1, 2, 3], phase, 0), torch.tensor([20]))
    assert (spec.causal_len.tolist(), spec.new_len.tolist(), spec.shift.tolist()) == ([0], [3], [0])
    assert (spec.kept.tolist(), spec.lora_on.tolist()) == ([[keeps_kv] * 3 + [False] * 3], [False])
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


@pytest.mark.parametrize(("num_emitted", "emitted"), [(3, []), (1, [2, 3])])
def test_a_commit_emits_what_is_left_and_a_block_of_masks_follows(num_emitted: int, emitted: list[int]) -> None:
    after, run = stepped(rows_of([1, 2, 3], Phase.COMMIT, num_emitted), [9, 9, 9])
    assert run == emitted
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


@pytest.mark.parametrize("num_emitted", [0, 1, 3])
def test_a_block_of_an_extend_emits_one_token_there(num_emitted: int) -> None:
    """The rest comes with its commit, or without a forward where the request ends with it."""
    block = rows_of([1, 2, 3, 4], Phase.COMMIT, 4)
    rows, first = COMMIT.skip_emitted(block, torch.tensor([num_emitted]), MASK)
    assert first.tolist() == [num_emitted + 1]
    rest = [1, 2, 3, 4][num_emitted + 1 :]
    assert stepped(rows)[1] == rest
    after, output = COMMIT.flush(rows)
    assert output.tokens[0, : output.lens[0]].tolist() == rest
    assert COMMIT.flush(after)[1].lens.tolist() == [0]


# --- Which block an EXTEND denoises, and who sees whom in it ---


def request() -> RequestState:
    return RequestState(DecodePlan((ModeSettings(Mode.DIFFUSION, 4, 0.9, 4),)))


@pytest.mark.parametrize(
    ("num_prompt", "num_output", "commit", "block"),
    [
        (6, 0, COMMIT, FirstBlock(6, [], 0)),
        (6, 3, COMMIT, FirstBlock(6, [200, 201, 202], 0)),
        (6, 4, COMMIT, FirstBlock(10, [], 0)),
        (6, 9, COMMIT, FirstBlock(14, [208], 0)),
        (6, 0, ON_GRID, FirstBlock(4, [104, 105], 2)),
        (6, 1, ON_GRID, FirstBlock(4, [104, 105, 200], 2)),
        (6, 2, ON_GRID, FirstBlock(8, [], 0)),
        (8, 0, ON_GRID, FirstBlock(8, [], 0)),
        (1, 0, ON_GRID, FirstBlock(0, [100], 1)),
    ],
    ids=str,
)
def test_the_first_block(num_prompt: int, num_output: int, commit: BlockCommit, block: FirstBlock) -> None:
    """What a resumed request emitted of its block is denoised again; the end of a prompt is given."""
    tokens = [*range(100, 100 + num_prompt), *range(200, 200 + num_output)]
    assert commit.first_block(request(), tokens, num_prompt) == block


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
