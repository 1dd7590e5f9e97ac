"""BD3-LM's model, sampler and rules against what was recorded of the reference, of whole answers a third."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import output_of

SCRIPT = Path(__file__).parent / "bd3lm_equals_reference.py"


@pytest.mark.parametrize(("variant", "num_cases"), [("bd3lm-b4", 73), ("bd3lm-b8", 67)])
def test_equals_reference(variant: str, num_cases: int) -> None:
    assert f"{num_cases} of {num_cases} cases agree" in output_of(SCRIPT, variant)
