"""The operator that adds the draft adapter, into which vLLM's compiler does not look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden import WITH_ADAPTER


@pytest.mark.parametrize("may_draft", [True, False])
def test_adds_to_the_tokens_that_draft(may_draft: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlm_serve.vllm import draft_adapter

    monkeypatch.setattr(draft_adapter, "tensor_model_parallel_all_reduce", lambda low_rank: low_rank)
    random = torch.Generator().manual_seed(0)
    hidden, x, lora_a, lora_b = (torch.randn(shape, generator=random) for shape in ((5, 8), (5, 6), (2, 6), (8, 2)))
    adapter = draft_adapter.DraftAdapter(7, torch.device("cpu"))
    adapter.token_on[[1, 3]] = True
    adapter.may_draft.fill_(may_draft)
    expected = hidden.clone()
    if may_draft:
        expected[[1, 3]] += (x @ lora_a.T @ lora_b.T)[[1, 3]]
    torch.ops.dlm_serve.add_draft_adapter_(hidden, x, lora_a, lora_b, adapter.token_on, adapter.may_draft)
    torch.testing.assert_close(hidden, expected)


@pytest.mark.parametrize(("width", "may_draft"), [(1, False), (4, True)])
def test_graphs_of_single_tokens_are_captured_without_it(
    width: int, may_draft: bool, start: Callable[..., Any]
) -> None:
    from vllm.v1.worker.gpu.cudagraph_utils import prepare_inputs_to_capture

    worker = start(WITH_ADAPTER).llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    runner = worker.model_runner
    prepare_inputs_to_capture(
        2,
        2 * width,
        runner.model_state,
        runner.input_buffers,
        runner.block_tables,
        runner.attn_groups,
        runner.kv_cache_config,
        full_cudagraph=True,
        max_query_len=width,
    )
    assert bool(runner.model.draft_adapter.may_draft) is may_draft
