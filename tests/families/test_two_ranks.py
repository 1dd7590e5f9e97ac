"""Every family on two ranks, in a pool too small for its load: answers are the reference's, and nothing is lost.

Ranks that decided anything differently would wait for each other for ever, or answer otherwise. Where a checkpoint has
one key-value head, each rank has a replica of it; the draft adapter is divided with the layers that it adds to.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from golden import (
    BD3LM,
    DATA,
    EFFICIENT_DLM,
    NEMOTRON_LABS_DIFFUSION,
    SDLM,
    WITH_ADAPTER,
    Answer,
    Case,
    Golden,
    by_adapter,
)
from serving import RETRACTIONS, Server

FLAGS = (
    *("--tp", "2", "--max-total-tokens", "1600", "--schedule-conservativeness", "0.05"),
    *("--prefill-decode-interval", "0"),  # as many at once as the pool holds, and more
)
IN_CHUNKS = ("--chunked-prefill-size", "24")
NUM_CASES = 12
MOST_FORWARDS = 40


@dataclass(frozen=True)
class Example:
    """A checkpoint with its reference, and flags that its prompts allow."""

    golden: Golden
    model: Path
    flags: tuple[str, ...] = IN_CHUNKS
    asked: dict[str, Any] = field(default_factory=dict)
    """What requests may ask of their logits, where all modes but diffusion honour it."""

    def cases(self) -> list[Case]:
        """Some of those that last for a few blocks, of all modes."""
        found = by_adapter(self.golden.cases(self.model), adapter=True)
        fit = [case for case in found if len(case["output_ids"]) > 20 and case["nfe"] <= MOST_FORWARDS]
        return fit[:: len(fit) // NUM_CASES][:NUM_CASES]


EXAMPLES = {
    "nemotron-labs-diffusion": Example(
        NEMOTRON_LABS_DIFFUSION, WITH_ADAPTER, asked={"regex": "[a-z ]{10,40}", "frequency_penalty": 0.7}
    ),
    "efficient-dlm": Example(EFFICIENT_DLM, DATA / "efficient_dlm" / "edlm-b32", flags=()),
    "sdlm": Example(SDLM, DATA / "sdlm" / "sdlm-d8-untied"),
    "bd3lm": Example(BD3LM, DATA / "bd3lm" / "bd3lm-b8"),
}


@pytest.fixture(scope="module", params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> Example:
    return EXAMPLES[request.param]


@pytest.fixture(scope="module")
def server(example: Example, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With SGLang's own switch that retracts, and its audits."""
    log = tmp_path_factory.mktemp("two_ranks") / "log"
    with Server.launch(example.model, *FLAGS, *example.flags, log=log, env=RETRACTIONS) as started:
        yield started
        started.assert_nothing_leaked()


def test_reference_cases(server: Server, example: Example) -> None:
    """Retracted and resumed, prompts in chunks where they may be."""
    reference = example.cases()
    answers = example.golden.ask(server, reference, NUM_CASES)
    assert unlike(example, reference, answers) == []
    assert sum(answer["meta_info"]["num_retractions"] for answer in answers) > 0


def test_samples(server: Server, example: Example) -> None:
    """In a crowd as alone."""
    bodies = [sampled(example.golden.body_of(case), seed) for seed, case in enumerate(example.cases()[::3])]
    for body in bodies[1::2]:
        body["sampling_params"] |= example.asked
    crowd = server.generate_all(bodies, len(bodies))
    alone = server.generate_all(bodies, 1)
    assert [answer["output_ids"] for answer in crowd] == [answer["output_ids"] for answer in alone]


def test_clients_that_go_away(server: Server, example: Example) -> None:
    """In the middle of their answers, beside others that go on."""
    reference = example.cases()[::3]
    with ThreadPoolExecutor(len(reference)) as pool:
        gone = [pool.submit(server.abandon, endless(example.golden.body_of(case))) for case in reference]
        answers = example.golden.ask(server, reference)
    for future in gone:
        future.result()
    assert unlike(example, reference, answers) == []


def unlike(example: Example, reference: list[Case], answers: list[Answer]) -> list[str]:
    """The cases that were answered otherwise; forward passes count of those that were not retracted."""
    pairs = list(zip(reference, answers, strict=True))
    calm = [(case, answer) for case, answer in pairs if not answer["meta_info"]["num_retractions"]]
    wrong = [case["id"] for case, answer in pairs if answer["output_ids"] != example.golden.expected_ids(case)]
    return wrong + example.golden.differences([case for case, _ in calm], [answer for _, answer in calm])


def sampled(body: dict[str, Any], seed: int) -> dict[str, Any]:
    """The same request by chance, of a few blocks; every second one decodes as its family does by itself."""
    chance = {"temperature": 0.9, "top_p": 0.9, "sampling_seed": seed, "max_new_tokens": 16}
    options: dict[str, Any] = {"custom_params": {}} if seed % 2 else {}
    return {**body, "sampling_params": {**body["sampling_params"], **chance, **options}}


def endless(body: dict[str, Any]) -> dict[str, Any]:
    """The same request for as many tokens as there is room for."""
    return {**body, "sampling_params": {**body["sampling_params"], "ignore_eos": True, "max_new_tokens": None}}
