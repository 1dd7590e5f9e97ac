"""BD3-LM's model, sampler and rules against all that was recorded of the reference."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import output_of

SCRIPT = Path(__file__).parent / "bd3lm_equals_reference.py"


@pytest.mark.parametrize(("variant", "num_cases"), [("bd3lm-b4", 93), ("bd3lm-b8", 88)])
def test_equals_reference(variant: str, num_cases: int) -> None:
    assert f"{num_cases} of {num_cases} cases agree" in output_of(SCRIPT, variant)
