"""What prompts of an EXTEND call are given of its results."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from dlm_serve.sglang.engine.batch_results import DlmBatchResultProcessor

LENGTHS, STARTS = [10, 4, 7], [2, 0, 7]
"""Tokens of three prompts that are encoded, and where in them log-probabilities begin: the last has none."""


@pytest.mark.parametrize(("row", "before"), [(0, 0), (1, 8), (2, 12)])
def test_log_probabilities_of_prompts_before_are_counted_though_they_were_skipped(row: int, before: int) -> None:
    """SGLang says 0: it has counted none of them."""
    found = Mock(calculate_num_input_logprobs=lambda req, length, start: length - start)
    names = [field.name for field in fields(DlmBatchResultProcessor) if field.init]
    processor = DlmBatchResultProcessor(**{**dict.fromkeys(names), "logprob_result_processor": found})
    call: dict[str, Any] = {
        "req": SimpleNamespace(return_logprob=True),
        "i": row,
        "logits_output": None,
        "extend_input_len_per_req": LENGTHS,
        "extend_logprob_start_len_per_req": STARTS,
        "logprob_pt": 0,
    }
    own = LENGTHS[row] - STARTS[row]
    assert processor._apply_prefill_logprobs(**call, next_token_ids=[5, 6, 7]) == before + own
    assert found.add_logprob_return_values.call_args.args[2] == before
    if own:
        assert processor._apply_chunked_prefill_logprobs(**call) == before + own
        assert found.add_input_logprob_return_values.call_args.args[3] == before
