"""Every case of the original implementation, through HTTP: the same ids and the same number of forward passes.

The reference ran each case alone, with its own cache; here they run many at a time, modes mixed, over a shared one.
So these are also the equalities batched = alone, cached = uncached, page size 1 = page size of a block, overlapped
steps = one after the other, and, on the crowded server, retracted and resumed = uninterrupted.
"""

from __future__ import annotations

import pytest
from golden import NEMOTRON_LABS_DIFFUSION as GOLDEN
from golden import RANDOM, TRAINED, WITH_ADAPTER, Case, by_adapter
from serving import Server

MOST_FORWARDS = 200
"""Of cases on more than one server: the longest would run alone for half of the time, and are like the others."""


def of_few_forwards(cases: list[Case]) -> list[Case]:
    """Those that do not keep the others waiting."""
    return [case for case in cases if case["nfe"] <= MOST_FORWARDS]


def test_blocks_of_8(trained: Server) -> None:
    reference = GOLDEN.cases(TRAINED)
    answers = GOLDEN.ask(trained, reference)
    assert GOLDEN.differences(reference, answers) == []


def test_pages_of_a_block(paged: Server) -> None:
    reference = of_few_forwards(GOLDEN.cases(RANDOM))[::4]
    answers = GOLDEN.ask(paged, reference)
    assert GOLDEN.differences(reference, answers) == []


def test_with_draft_adapter(with_adapter: Server) -> None:
    reference = of_few_forwards(by_adapter(GOLDEN.cases(WITH_ADAPTER), adapter=True))
    answers = GOLDEN.ask(with_adapter, reference)
    assert GOLDEN.differences(reference, answers) == []


def test_without_draft_adapter_nor_overlap(without_adapter: Server) -> None:
    reference = of_few_forwards(by_adapter(GOLDEN.cases(WITH_ADAPTER), adapter=False))[::4]
    answers = GOLDEN.ask(without_adapter, reference)
    assert GOLDEN.differences(reference, answers) == []


def test_adapter_is_used(with_adapter: Server) -> None:
    """The cases tell the adapter's presence: for the same prompts, drafts with it are accepted differently."""
    reference = of_few_forwards(by_adapter(GOLDEN.cases(WITH_ADAPTER, "linear_spec"), adapter=False))[::4]
    answers = GOLDEN.ask(with_adapter, reference)
    assert [answer["output_ids"] for answer in answers] == [GOLDEN.expected_ids(case) for case in reference]
    assert GOLDEN.differences(reference, answers) != []


def test_acceptance_length(trained: Server) -> None:
    """`acceptance_length` is the mean of the reference's accepted runs, for requests that end by length."""
    reference = [c for c in GOLDEN.cases(TRAINED, "linear_spec") if c["finish"] == "length"]
    answers = GOLDEN.ask(trained, reference)
    ours = [answer["meta_info"]["dlm"]["acceptance_length"] for answer in answers]
    theirs = [round(sum(case["accept_lens"]) / len(case["accept_lens"]), 4) for case in reference]
    assert ours == theirs


@pytest.mark.parametrize("mode", ["ar", "diffusion", "linear_spec"])
def test_retracted_and_resumed(crowded: Server, mode: str) -> None:
    """A pool too small for the load: requests are retracted, and answer the same as without."""
    reference = GOLDEN.cases(TRAINED, mode)
    reference = [case for case in of_few_forwards(reference) if len(case["output_ids"]) > 20]
    reference = reference[:: len(reference) // 12] * 2
    answers = GOLDEN.ask(crowded, reference, 40)
    assert [answer["output_ids"] for answer in answers] == [GOLDEN.expected_ids(case) for case in reference]
    assert sum(answer["meta_info"]["num_retractions"] for answer in answers) > 0
