"""What `benchmarks/one_forward_replay.py` simulates is what decoding takes, on nano with noise on its drafts."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from dlm_serve.decoding import Phase, RowOptions, Rows
from dlm_serve.decoding.one_forward import LONGEST_CHAIN, plan_groups
from dlm_serve.decoding.one_forward.plan import SECOND_IS_RIGHT
from dlm_serve.training.tokenizer import EOS_ID

MASK = 2


@pytest.fixture(scope="module")
def replay() -> Any:
    return importlib.import_module("one_forward_replay")


@pytest.fixture(scope="module")
def texts(replay: Any) -> Any:
    return replay.answers(replay.with_noise(2.25), replay.task_prompts(6))


def test_tokens_per_forward(texts: Any) -> None:
    coverage = importlib.import_module("one_forward_coverage")
    assert coverage.compare(texts, 64)["replayed over measured"] == pytest.approx(1, abs=0.03)


def test_plans(replay: Any, texts: Any) -> None:
    for width in (16, 64):
        for text in texts:
            draft = text.draft(text.num_prompt, 20)
            rows = Rows.of([RowOptions(Phase.SPECULATE, LONGEST_CHAIN, stop_ids=[EOS_ID])], width)
            rows = rows.start_block(torch.tensor([EOS_ID + 1]), MASK)
            number = min(len(draft.ids), width - 1)
            rows.tokens[0, 1 : number + 1] = torch.tensor(draft.ids[:number])
            rows.draft_confidence[0, 1 : number + 1] = torch.tensor(draft.confidence[:number])
            expected, found = plan_groups(rows, MASK), replay.plan(draft, width, SECOND_IS_RIGHT)
            assert int(expected.num_main) == found.num_main
            held = expected.num_masks.shape[1]
            assert expected.num_masks[0].tolist() == found.num_masks[:held].tolist()
            assert expected.has_second[0].tolist() == found.has_second[:held].tolist()
