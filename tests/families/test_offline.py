"""DiffusionLM against the reference's cases, and the examples of the model cards."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from golden import DATA, NEMOTRON_LABS_DIFFUSION, THINKING, TRAINED, Case
from preloaded import Program
from processes import output_of, users_environment
from serving import ROOT, START_SECONDS

from dlm_serve.bundled import FOLDER as NANO

EOS = 11
CARDS = ROOT / "docs" / "examples" / "cards"


def expected(cases: list[Case]) -> tuple[list[list[int]], int]:
    """What the functions return for a batch: padded rows, and the forward passes of the one that takes most."""
    rows = [[*case["prompt_ids"], *NEMOTRON_LABS_DIFFUSION.expected_ids(case)] for case in cases]
    longest = max(map(len, rows))
    return [row + [EOS] * (longest - len(row)) for row in rows], max(case["nfe"] for case in cases)


def test_reference_cases() -> None:
    """Those of blocks of 8 in every mode, and of thinking budgets: the cards' ids, and their count of forwards."""
    script = Path(__file__).with_name("offline_answers.py")
    cases = [*NEMOTRON_LABS_DIFFUSION.cases(TRAINED), *THINKING.cases(TRAINED)]
    by_id = {case["id"]: case for case in cases if case["params"].get("block_length", 8) == 8}
    found: dict[str, Any] = json.loads(output_of(script, *by_id).splitlines()[-1])
    batches = [([by_id[name] for name in batch["cases"]], batch) for batch in found["batches"]]
    assert sum(len(cases) for cases, _ in batches) == len(by_id)
    assert [(batch["out_ids"], batch["nfe"]) for _, batch in batches] == [expected(cases) for cases, _ in batches]
    assert found["shape"][0] == 1


EXAMPLES = {
    "nemotron_labs_diffusion": (NANO, r"self-speculation \(NFE=\d\): .*Answer: 1512"),
    "efficient_dlm": (DATA / "efficient_dlm" / "edlm-b32", r"NFE=\d+, 128 tokens: "),
    "sdlm": (DATA / "sdlm" / "sdlm-d4-tied", r"response, \d+ pieces, the last of \d+ tokens: "),
    "bd3lm": (DATA / "bd3lm" / "bd3lm-b4", r"NFE=\d+, \d+ tokens: "),
}


def test_each_card_has_an_example() -> None:
    assert {file.stem for file in CARDS.glob("*.py")} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_card(name: str, tmp_path: Path) -> None:
    """Two lines differ from the card's."""
    model, shown = EXAMPLES[name]
    script = CARDS / f"{name}.py"
    assert script.read_text().count("# *") == 2
    output, errors = tmp_path / "output", tmp_path / "errors"
    program = Program([str(script), str(model)], users_environment(), output, errors)
    assert program.wait(START_SECONDS) == 0, errors.read_text()[-3000:]
    assert re.search(shown, output.read_text(), flags=re.DOTALL), output.read_text()
