"""What every measurement records, beside its figures."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def commit() -> str:
    """The commit that is measured, where git knows it; `-dirty` if files differ from it."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    done = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def write(name: str, figures: dict[str, Any], *packages: str) -> None:
    """`benchmarks/results/NAME.json`: `figures`, the commit, the GPU and the versions of `packages`."""
    import torch

    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    header = {"commit": commit(), "machine": machine, "versions": {package: version(package) for package in packages}}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({**header, **figures}, indent=2) + "\n")
