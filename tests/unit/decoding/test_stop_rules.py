"""The rule by which BD3-LM's sampler ends a sequence, against the reference's decisions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlm_serve.decoding.stop_rules import WINDOW, ended_length, entropy, is_degenerate

EOS = 256
RULES = Path(__file__).parents[2] / "data" / "bd3lm" / "rule_cases.json"
CASES = [case for case in json.loads(RULES.read_text()) if case["mode"] == "stop_rule"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_reference(case: dict) -> None:  # type: ignore[type-arg]
    ids = case["ids"]
    assert entropy(ids) == pytest.approx(case["entropy"], abs=1e-5)
    if case["params"]["var_length"]:
        assert ended_length(ids, EOS) == (case["kept"] if case["stop"] else None)
    else:
        assert is_degenerate(ids) == case["stop"]


def test_short_sequences_are_not_checked() -> None:
    assert ended_length([EOS] * WINDOW, EOS) is None
    assert ended_length([EOS] * (WINDOW + 1), EOS) == 1
