"""The counts of the model cards' functions, on all cases of the references."""

from __future__ import annotations

import json

import pytest
from golden import BD3LM, EFFICIENT_DLM, NEMOTRON_LABS_DIFFUSION, SDLM, Golden

from dlm_serve.client import Statistics
from dlm_serve.families import FAMILIES
from dlm_serve.offline.conventions import CONVENTIONS, Decoded

MODES = {"ar": "autoregressive", "linear_spec": "self_speculation"}
REFERENCES = {
    "nemotron-labs-diffusion": NEMOTRON_LABS_DIFFUSION,
    "efficient-dlm": EFFICIENT_DLM,
    "sdlm": SDLM,
    "bd3lm": BD3LM,
}


def test_every_family_has_a_convention() -> None:
    assert set(CONVENTIONS) == {family.name for family in FAMILIES}


@pytest.mark.parametrize(("family", "golden"), REFERENCES.items())
def test_forward_passes_are_those_of_the_reference(family: str, golden: Golden) -> None:
    """What the engine counts, which other tests compare with `expected_nfe`, becomes what the reference counts."""
    cases = json.loads(golden.file.read_text())
    counted = []
    for case in cases:
        statistics = Statistics(
            mode=MODES.get(case["mode"], "diffusion"),
            nfe=golden.expected_nfe(case),
            tokens_per_forward=None,
            acceptance_length=None,
            block_length=case["params"].get("block_length", 1),
        )
        ids = tuple(golden.expected_ids(case))
        decoded = Decoded(len(case["prompt_ids"]), ids, case["finish"] == "eos", statistics)
        counted.append(CONVENTIONS[family].nfe(decoded))
    assert counted == [case["nfe"] for case in cases]
