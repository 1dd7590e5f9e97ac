"""Every case of the original implementation, through HTTP: the same ids and the same number of forward passes.

The reference ran each case alone, with its own cache; here they run many at a time, modes mixed, over a shared one.
So these are also the equalities batched = alone, cached = uncached, page size 1 = page size of a block, overlapped
steps = one after the other, and, on the crowded server, retracted and resumed = uninterrupted.
"""

from __future__ import annotations

import pytest
from golden import RANDOM, TRAINED, WITH_ADAPTER, body_of, cases, differences, expected_ids
from serving import Server

CONCURRENCY = 16


def test_blocks_of_8(trained: Server) -> None:
    reference = cases(TRAINED)
    answers = trained.generate_all([body_of(case) for case in reference], CONCURRENCY)
    assert differences(reference, answers) == []


def test_pages_of_a_block(paged: Server) -> None:
    reference = cases(RANDOM)
    answers = paged.generate_all([body_of(case) for case in reference], CONCURRENCY)
    assert differences(reference, answers) == []


def test_with_draft_adapter(with_adapter: Server) -> None:
    reference = cases(WITH_ADAPTER, adapter=True)
    answers = with_adapter.generate_all([body_of(case) for case in reference], CONCURRENCY)
    assert differences(reference, answers) == []


def test_without_draft_adapter_nor_overlap(without_adapter: Server) -> None:
    reference = cases(WITH_ADAPTER, adapter=False)
    answers = without_adapter.generate_all([body_of(case) for case in reference], CONCURRENCY)
    assert differences(reference, answers) == []


def test_adapter_is_used(with_adapter: Server) -> None:
    """The cases tell the adapter's presence: for the same prompts, drafts with it are accepted differently."""
    reference = cases(WITH_ADAPTER, adapter=False, modes=["linear_spec"])
    answers = with_adapter.generate_all([body_of(case) for case in reference], CONCURRENCY)
    assert [answer["output_ids"] for answer in answers] == [expected_ids(case) for case in reference]
    assert differences(reference, answers) != []


def test_acceptance_length(trained: Server) -> None:
    """`acceptance_length` is the mean of the reference's accepted runs, for requests that end by length."""
    reference = [c for c in cases(TRAINED, modes=["linear_spec"]) if c["finish"] == "length"]
    answers = trained.generate_all([body_of(case) for case in reference], CONCURRENCY)
    ours = [answer["meta_info"]["dlm"]["acceptance_length"] for answer in answers]
    theirs = [round(sum(case["accept_lens"]) / len(case["accept_lens"]), 4) for case in reference]
    assert ours == theirs


@pytest.mark.parametrize("mode", ["ar", "diffusion", "linear_spec"])
def test_retracted_and_resumed(crowded: Server, mode: str) -> None:
    """A pool too small for the load: requests are retracted, and answer the same as without."""
    reference = cases(TRAINED, modes=[mode])
    reference = [case for case in reference if len(case["output_ids"]) > 20] * 2
    answers = crowded.generate_all([body_of(case) for case in reference], 40)
    assert [answer["output_ids"] for answer in answers] == [expected_ids(case) for case in reference]
    assert sum(answer["meta_info"]["num_retractions"] for answer in answers) > 0
