"""Families whose blocks start as masks and are committed bidirectionally: one step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dlm_serve.decoding import (
    Commit,
    Mode,
    Phase,
    Policy,
    Prediction,
    Prefill,
    Rows,
    RowSettings,
    Sharing,
    advance,
    carry,
    hand_out,
    layout,
    stretch_ends,
)
from dlm_serve.engine.requests import FirstBlock, RequestRecord, first_block_of
from dlm_serve.plan import DecodePlan

MASK, STOP = 0, 7
POLICY = Policy(Prefill.BIDIRECTIONAL, Commit.BLOCK, Sharing.NONE)
ANCHORED = Policy(Prefill.BLOCK_CAUSAL, Commit.BLOCK, Sharing.BLOCKS, is_anchored=True)


def rows_of(tokens: Sequence[int], phase: Phase, num_emitted: int, width: int = 6, **settings: Any) -> Rows:
    """One row in the middle of a block."""
    defaults: dict[str, Any] = {"threshold": 0.9, "steps": len(tokens), "convergence_threshold": None}
    asked = RowSettings(
        Mode.DIFFUSION, len(tokens), seed=0, stop_ids=[STOP], is_seeded=False, **{**defaults, **settings}
    )
    rows = Rows.of([asked], width).start_masked_block(MASK)
    rows.tokens[0, : len(tokens)] = torch.tensor(tokens)
    return rows.replace(
        phase=torch.tensor([int(phase)], dtype=torch.int32),
        num_emitted=torch.tensor([num_emitted], dtype=torch.int32),
    )


def stepped(rows: Rows, ids: Sequence[int] = (), confidence: Sequence[float] = ()) -> tuple[Rows, list[int]]:
    """The row after a forward, and the tokens that it emitted."""
    padded = [torch.tensor([[*given, *[0] * (rows.width - len(given))]]) for given in (ids, confidence)]
    prediction = Prediction(padded[0].long(), padded[1].float(), torch.zeros(1, rows.width))
    after, emission = advance(rows, prediction, MASK, POLICY)
    return after, emission.tokens[0, : emission.lens[0]].tolist()


@pytest.mark.parametrize("length", [1, 4])
def test_a_block_starts_as_masks_and_is_refined(length: int) -> None:
    """Also one of a single token, which no earlier forward predicts."""
    asked = RowSettings(Mode.DIFFUSION, length, 0.9, length, None, seed=0, stop_ids=[], is_seeded=False)
    rows = Rows.of([asked], 6).start_masked_block(MASK)
    assert (rows.phase.tolist(), rows.num_emitted.tolist(), rows.new_len.tolist()) == ([Phase.DENOISE], [0], [length])
    assert rows.tokens.tolist() == [[MASK] * 6]


@pytest.mark.parametrize(("phase", "keeps_kv"), [(Phase.DENOISE, False), (Phase.COMMIT, True)])
def test_every_forward_is_bidirectional_and_predicts_its_own_positions(phase: Phase, keeps_kv: bool) -> None:
    step = layout(rows_of([1, 2, 3], phase, 0), POLICY)
    assert (step.causal_len.tolist(), step.new_len.tolist(), step.shift.tolist()) == ([0], [3], [0])
    assert (step.kept_len.tolist(), step.lora_on.tolist()) == ([3 if keeps_kv else 0], [False])


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
    rows, first = carry(block, torch.tensor([num_emitted]), MASK, POLICY)
    assert first.tolist() == [num_emitted + 1]
    rest = [1, 2, 3, 4][num_emitted + 1 :]
    assert stepped(rows)[1] == rest
    after, emission = hand_out(rows, POLICY)
    assert emission.tokens[0, : emission.lens[0]].tolist() == rest
    assert hand_out(after, POLICY)[1].lens.tolist() == [0]


# --- Which block an EXTEND refines, and who sees whom in it ---


def request(num_prompt: int, num_output: int, extend_end: int | None = None) -> SimpleNamespace:
    plan = DecodePlan(mode=Mode.DIFFUSION, block_length=4, threshold=0.9, steps=4, convergence_threshold=None)
    return SimpleNamespace(
        origin_input_ids=list(range(100, 100 + num_prompt)),
        output_ids=list(range(200, 200 + num_output)),
        extend_end=num_prompt + num_output if extend_end is None else extend_end,
        dlm_record=RequestRecord(plan),
    )


@pytest.mark.parametrize(
    ("num_prompt", "num_output", "policy", "block"),
    [
        (6, 0, POLICY, FirstBlock(6, [], 0)),
        (6, 3, POLICY, FirstBlock(6, [200, 201, 202], 0)),
        (6, 4, POLICY, FirstBlock(10, [], 0)),
        (6, 9, POLICY, FirstBlock(14, [208], 0)),
        (6, 0, ANCHORED, FirstBlock(4, [104, 105], 2)),
        (6, 1, ANCHORED, FirstBlock(4, [104, 105, 200], 2)),
        (6, 2, ANCHORED, FirstBlock(8, [], 0)),
        (8, 0, ANCHORED, FirstBlock(8, [], 0)),
        (1, 0, ANCHORED, FirstBlock(0, [100], 1)),
    ],
    ids=str,
)
def test_the_first_block(num_prompt: int, num_output: int, policy: Policy, block: FirstBlock) -> None:
    """What a resumed request emitted of its block is refined again; the end of a prompt is given."""
    assert first_block_of(request(num_prompt, num_output), policy) == block


def test_no_block_before_the_last_chunk() -> None:
    assert first_block_of(request(6, 0, extend_end=5), POLICY) is None


@pytest.mark.parametrize(
    ("prefill", "is_anchored", "num_prompt", "num_tokens", "ends"),
    [
        (Prefill.BIDIRECTIONAL, False, 10, 10, [10]),
        (Prefill.BIDIRECTIONAL, False, 10, 17, [10, 13, 16, 17]),
        (Prefill.BLOCK_CAUSAL, False, 10, 10, [4, 8, 10]),
        (Prefill.BLOCK_CAUSAL, False, 8, 8, [4, 8]),
        (Prefill.BLOCK_CAUSAL, False, 10, 17, [4, 8, 10, 13, 16, 17]),
        (Prefill.BLOCK_CAUSAL, True, 10, 17, [3, 6, 9, 12, 15, 17]),
        (Prefill.BLOCK_CAUSAL, True, 3, 3, [3]),
    ],
)
def test_stretches(prefill: Prefill, is_anchored: bool, num_prompt: int, num_tokens: int, ends: list[int]) -> None:
    """Prompts in blocks of 4 where they have any, answers in blocks of 3; anchored, all are blocks of 3."""
    policy = Policy(prefill, Commit.BLOCK, Sharing.BLOCKS, is_anchored=is_anchored)
    assert stretch_ends(policy, num_prompt, num_tokens, block_size=4, block_length=3) == ends
