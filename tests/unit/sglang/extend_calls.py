"""Run by test_extend_step.py: what EXTEND calls leave of requests, one JSON object for each case."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from dlm_serve.decoding import DecodePlan, Mode, ModeSettings, RequestState, Rows
from dlm_serve.families import BD3LM, EFFICIENT_DLM, NEMOTRON_LABS_DIFFUSION, SDAR, SDLM
from dlm_serve.sglang.engine import requests
from dlm_serve.sglang.engine.extend_step import ExtendStep
from dlm_serve.sglang.engine.requests import NO_TOKEN

FAMILIES = {family.name: family for family in (BD3LM, EFFICIENT_DLM, NEMOTRON_LABS_DIFFUSION, SDAR, SDLM)}
MASK, BLOCK_LENGTH, PREDICTED = 1, 4, 50
INDEX = torch.tensor([1])
AUTOREGRESSIVE, BLOCKS = ModeSettings(Mode.AUTOREGRESSIVE, 1), ModeSettings(Mode.DIFFUSION, BLOCK_LENGTH, 0.9, 4)


def run(case: dict[str, Any]) -> dict[str, Any]:
    """What becomes of a request with a prompt of 6 tokens, 100 to 105, and so many of its answer, from 200 on."""
    commit = FAMILIES[case["family"]].commit
    settings = AUTOREGRESSIVE if case["mode"] == "autoregressive" else BLOCKS
    params = SimpleNamespace(temperature=0.0, top_k=1, top_p=1.0, min_p=0.0, ignore_eos=True, max_new_tokens=100)
    tokens = [*range(100, 106), *range(200, 200 + case["num_output"])]
    req = SimpleNamespace(
        dlm_state=RequestState(DecodePlan((settings,))),
        origin_input_ids=tokens[:6],
        output_ids=tokens[6:],
        extend_end=len(tokens) - case["num_left"],
        sampling_params=params,
        skip_radix_cache_insert=False,
    )
    lens = torch.tensor([req.extend_end])
    batch: Any = SimpleNamespace(reqs=[req], req_pool_indices=INDEX, seq_lens=lens, sampling_info=SimpleNamespace())
    worker: Any = mock.Mock()
    worker.model_runner.attn_backend.span_backend = None
    worker.forward_batch_generation.return_value = SimpleNamespace(next_token_ids=torch.tensor([PREDICTED]))
    table = Rows.table(2, 2 * BLOCK_LENGTH, MASK, "cpu")
    with mock.patch.object(requests, "current", return_value=SimpleNamespace(checkpoint=mock.Mock(vocab_size=300))):
        counts = torch.zeros(2, 300, dtype=torch.int32)
        result = ExtendStep(worker, table, counts, commit, MASK, BLOCK_LENGTH).run(batch, None)
    rows = table.gather(INDEX)
    (token,) = result.next_token_ids.tolist()
    return {
        "token": None if token == NO_TOKEN else token,
        "row": rows.tokens[0, : rows.new_len[0]].tolist(),
        "start": int(rows.starts(result.new_seq_lens)),
        "num_forwards": len(worker.mock_calls),
    }


if __name__ == "__main__":
    for case in sys.argv[1:]:
        sys.stdout.write(json.dumps(run(json.loads(case))) + "\n")
