"""vLLM warms a model runner up with requests of its own, which nothing has admitted; without a GPU it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden import NEMOTRON_LABS_DIFFUSION, TRAINED, vllm_request_of


def test_answers_behind_a_warm_up(
    start: Callable[..., Any], ask: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.worker.gpu.warmup import warmup_kernels

    engine = start(TRAINED)
    worker = engine.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    monkeypatch.setattr(worker.model_runner, "kv_block_zeroer", None)
    monkeypatch.setattr(worker.scheduler_config, "max_num_seqs", 4)
    requests = worker.model_runner.req_states.req_id_to_index
    left_over = set(requests)  # vLLM forgets those of another test with the next step
    warmup_kernels(worker.model_runner, worker.execute_model, worker.sample_tokens)
    assert set(requests) <= left_over
    cases = NEMOTRON_LABS_DIFFUSION.cases(TRAINED, "linear_spec")[:2]
    answers = ask(engine, [vllm_request_of(case) for case in cases])
    assert [list(each.token_ids) for each in answers] == [NEMOTRON_LABS_DIFFUSION.expected_ids(case) for case in cases]
