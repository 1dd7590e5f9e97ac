"""Run by test_first_block.py: first blocks of which a part was emitted, one JSON object for each case."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from dlm_serve.decoding import Emission, Mode, Prediction, Rows, RowSettings, Sampling, advance_
from dlm_serve.engine.first_block import FirstBlocks
from dlm_serve.engine.requests import FirstBlock, RequestRecord
from dlm_serve.families import EFFICIENT_DLM, NEMOTRON_LABS_DIFFUSION, Family
from dlm_serve.plan import DecodePlan

FAMILIES = {family.name: family for family in (EFFICIENT_DLM, NEMOTRON_LABS_DIFFUSION)}
MASK, STOP, BLOCK_LENGTH = 1, 2, 6
INDEX = torch.tensor([1])
ONE = torch.ones(1)
GREEDY = Sampling(ONE, ONE, ONE, ONE, ONE, all_greedy=True, needs_filter=False)


class Model:
    """Says one list of tokens after the other, sure of all but those it leaves out (None)."""

    def __init__(self, table: Rows, family: Family, said: Sequence[Sequence[int | None]]) -> None:
        self._table, self._policy, self._said = table, family.policy, iter(said)
        self.starts: list[int] = []

    def predict(
        self, reqs: Sequence[Any], indices: torch.Tensor, committed: torch.Tensor, width: int, sampling: Sampling
    ) -> tuple[torch.Tensor, Prediction]:
        self.starts += self._table.gather(indices).starts(committed).tolist()
        said = next(self._said)
        ids = torch.tensor([[token or 0 for token in said]])
        sure = torch.tensor([[float(token is not None) for token in said]])
        return ids, Prediction(ids, sure, torch.zeros(ids.shape))

    def advance(self, indices: torch.Tensor, prediction: Prediction) -> Emission:
        return advance_(self._table, indices, prediction, MASK, self._policy)


def run(case: dict[str, Any]) -> dict[str, Any]:
    """What becomes of a block that starts at position 10, where the model first says one thing and then another."""
    family = FAMILIES[case["family"]]
    table = Rows.table(2, BLOCK_LENGTH, MASK, "cpu")
    settings = RowSettings(Mode.DIFFUSION, BLOCK_LENGTH, 0.9, 6, None, 0, [STOP], family.policy.is_seeded)
    table.scatter_(INDEX, Rows.of([settings], BLOCK_LENGTH))
    model: Any = Model(table, family, case["said"])
    plan = DecodePlan(mode=Mode.DIFFUSION, block_length=BLOCK_LENGTH, threshold=0.9, steps=6)
    params = SimpleNamespace(max_new_tokens=100, ignore_eos=True)
    req = SimpleNamespace(dlm_record=RequestRecord(plan), output_ids=[], sampling_params=params, spec_verify_ct=0)
    block = FirstBlock(10, case["emitted"], num_given=int(family.policy.is_seeded))
    first_blocks = FirstBlocks(model, table, MASK, family.policy, model.predict)
    pending = first_blocks.start([req], INDEX, [block], GREEDY)
    rows = table.gather(INDEX)
    return {
        "pending": pending.tolist(),
        "tokens": rows.tokens[0, : rows.new_len[0]].tolist(),
        "num_emitted": rows.num_emitted.tolist(),
        "starts": model.starts,
    }


if __name__ == "__main__":
    for case in sys.argv[1:]:
        sys.stdout.write(json.dumps(run(json.loads(case))) + "\n")
