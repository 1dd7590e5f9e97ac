"""Write a measurement together with what is needed to repeat it."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dlm_serve.evaluation.report import commit

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def write(name: str, figures: dict[str, Any], *packages: str) -> None:
    """Write `benchmarks/results/NAME.json`: `figures`, the commit, the GPU and the versions of `packages`."""
    import torch

    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    header = {"commit": commit(), "machine": machine, "versions": {package: version(package) for package in packages}}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({**header, **figures}, indent=2) + "\n")
