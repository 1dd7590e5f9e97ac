"""`make serve FAMILY=...`, as the README has it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from dlm_serve.families import family_of

ROOT = Path(__file__).parent.parent.parent


def printed(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What `make` would run, without running it."""
    return subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["efficient-dlm", "sdlm", "bd3lm"])
def test_a_tiny_checkpoint_of_the_family(name: str) -> None:
    model = re.search(r"--model-path (\S+)", printed("serve", f"FAMILY={name}").stdout)
    assert model is not None
    family = family_of(json.loads((ROOT / model[1] / "config.json").read_text()))
    assert family is not None
    assert family.name == name


def test_an_unknown_family_is_refused_with_those_that_there_are() -> None:
    refused = printed("serve", "FAMILY=gpt")
    assert refused.returncode != 0
    assert all(name in refused.stderr for name in ("gpt", "sdlm", "bd3lm", "efficient-dlm"))
