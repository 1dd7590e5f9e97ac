"""Run by test_first_block.py: first blocks of which a part was emitted, one JSON object for each case."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from dlm_serve.decoding import DecodePlan, FirstBlock, Mode, ModeSettings, Prediction, RequestState, Rows
from dlm_serve.families import EFFICIENT_DLM, NEMOTRON_LABS_DIFFUSION, Family
from dlm_serve.sglang import first_block
from dlm_serve.sglang.block_step import BlockForward
from dlm_serve.sglang.first_block import FirstBlocks

FAMILIES = {family.name: family for family in (EFFICIENT_DLM, NEMOTRON_LABS_DIFFUSION)}
MASK, STOP, BLOCK_LENGTH = 1, 2, 6
INDEX = torch.tensor([1])


class Model:
    """Says one list of tokens after the other, sure of all but those it leaves out (None)."""

    def __init__(self, table: Rows, family: Family, said: Sequence[Sequence[int | None]]) -> None:
        self._table, self._commit, self._said = table, family.commit, iter(said)
        self.starts: list[int] = []

    def forward(self, indices: torch.Tensor, committed: torch.Tensor, width: int) -> BlockForward:
        self.starts += self._table.gather(indices).starts(committed).tolist()
        said = next(self._said)
        ids = torch.tensor([[token or 0 for token in said]])
        sure = torch.tensor([[float(token is not None) for token in said]])
        prediction = Prediction(ids, sure, torch.zeros(ids.shape))
        return BlockForward(
            ids, prediction, False, lambda: self._commit.advance_(self._table, indices, prediction, MASK)
        )


def run(case: dict[str, Any]) -> dict[str, Any]:
    """What becomes of a block that starts at position 10, where the model first says one thing and then another."""
    family = FAMILIES[case["family"]]
    table = Rows.table(2, BLOCK_LENGTH, MASK, "cpu")
    settings = ModeSettings(Mode.DIFFUSION, BLOCK_LENGTH, 0.9, 6)
    options = family.commit.row_options(settings, 0, [STOP], 0)
    table.scatter_(INDEX, Rows.of([options], BLOCK_LENGTH))
    model: Any = Model(table, family, case["said"])
    params = SimpleNamespace(max_new_tokens=100, ignore_eos=True)
    req = SimpleNamespace(dlm_state=RequestState(DecodePlan((settings,))), output_ids=[], sampling_params=params)
    block = FirstBlock(10, case["emitted"], num_given=int(family is NEMOTRON_LABS_DIFFUSION))
    first_blocks = FirstBlocks(model, table, family.commit, family.token_choice(MASK))
    pending = first_blocks.start([req], INDEX, [block])
    rows = table.gather(INDEX)
    return {
        "pending": pending.tolist(),
        "tokens": rows.tokens[0, : rows.new_len[0]].tolist(),
        "num_emitted": rows.num_emitted.tolist(),
        "starts": model.starts,
    }


if __name__ == "__main__":
    with mock.patch.object(first_block, "agree_on"):  # which asks for process groups
        for case in sys.argv[1:]:
            sys.stdout.write(json.dumps(run(json.loads(case))) + "\n")
