"""The logits of SDLM's windows against those recorded of the reference."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import output_of

SCRIPT = Path(__file__).parent / "sdlm_equals_reference.py"


@pytest.mark.parametrize("variant", ["sdlm-d4-tied", "sdlm-d8-untied"])
def test_equals_reference(variant: str) -> None:
    assert "4 of 4 cases agree" in output_of(SCRIPT, variant)
