"""vLLM answers the reference's cases with its tokens, in as many forwards, all modes in one batch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from golden import NEMOTRON_LABS_DIFFUSION, TRAINED, WITH_ADAPTER, by_adapter, vllm_request_of

EVERY = int(os.environ.get("DLM_VLLM_EVERY", "3"))
"""Of so many cases one is asked, since kernels are interpreted here; 1 asks all."""


@pytest.mark.parametrize("model", [TRAINED, WITH_ADAPTER], ids=lambda model: model.name)
def test_tokens_and_forwards(model: Path, start: Callable[..., Any], ask: Callable[..., list[Any]]) -> None:
    cases = by_adapter(NEMOTRON_LABS_DIFFUSION.cases(model), adapter=model == WITH_ADAPTER)[::EVERY]
    answers = ask(start(model), [vllm_request_of(case) for case in cases])
    found = [(list(each.token_ids), each.spec_decode_metrics.to_dict()["num_spec_steps"]) for each in answers]
    golden = NEMOTRON_LABS_DIFFUSION
    expected = [(golden.expected_ids(case), golden.expected_nfe(case)) for case in cases]
    wrong = {case["id"]: pair for case, *pair in zip(cases, found, expected, strict=True) if pair[0] != pair[1]}
    assert wrong == {}
