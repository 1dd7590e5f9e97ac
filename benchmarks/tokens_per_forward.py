"""Tokens per forward of each mode over the prompts that the bundled checkpoint was trained for.

    make serve                                  # in another terminal
    python benchmarks/tokens_per_forward.py     # prints a table, writes benchmarks/results/tokens_per_forward.json

The answers of self-speculation must equal those of autoregression, or nothing is reported.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "tokens_per_forward.json"
VARIANT = "nld-trained-b32-lora"
MAX_NEW_TOKENS = 64

SETTINGS: dict[str, dict[str, Any]] = {
    "autoregressive": {"mode": "autoregressive"},
    "diffusion, threshold 0.9": {"mode": "diffusion", "threshold": 0.9},
    "diffusion, threshold 0.5": {"mode": "diffusion", "threshold": 0.5},
    "diffusion, one token a step": {"mode": "diffusion", "threshold": None},
    "self_speculation": {"mode": "self_speculation"},
}


def prompts() -> list[list[int]]:
    """The distinct prompts of the reference's cases, in order."""
    cases = json.loads((ROOT / "tests" / "data" / "nld_cases.json").read_text())
    return [list(ids) for ids in dict.fromkeys(tuple(c["prompt_ids"]) for c in cases if c["variant"] == VARIANT)]


def answers(url: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    """The server's answers to all prompts, one after the other, without end-of-sequence."""
    sampling = {"temperature": 0, "max_new_tokens": MAX_NEW_TOKENS, "ignore_eos": True}
    body = {"input_ids": prompts(), "sampling_params": {**sampling, "custom_params": {"dlm": options}}}
    response = requests.post(f"{url}/generate", json=body, timeout=600)
    response.raise_for_status()
    found: list[dict[str, Any]] = response.json()
    return found


def summary(answers: list[dict[str, Any]], exact: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the prompts, and how many answers equal the autoregressive ones."""
    of = [answer["meta_info"]["dlm"] for answer in answers]
    lengths = [entry["acceptance_length"] for entry in of if entry["acceptance_length"] is not None]
    return {
        "forwards": statistics.mean(entry["nfe"] for entry in of),
        "tokens_per_forward": sum(len(a["output_ids"]) for a in answers) / sum(entry["nfe"] for entry in of),
        "acceptance_length": statistics.mean(lengths) if lengths else None,
        "equal_to_autoregressive": sum(a["output_ids"] == e["output_ids"] for a, e in zip(answers, exact, strict=True)),
    }


def table(result: dict[str, Any]) -> str:
    """The result as the README shows it."""
    lines = ["| mode | forward passes | tokens per forward | answers equal to `autoregressive` |", "|---|---|---|---|"]
    for name, row in result["modes"].items():
        equal = f"{row['equal_to_autoregressive']} of {result['prompts']}"
        lines.append(f"| {name} | {row['forwards']:.1f} | {row['tokens_per_forward']:.2f} | {equal} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    url = parser.parse_args().url
    measured = {name: answers(url, options) for name, options in SETTINGS.items()}
    exact = measured["autoregressive"]
    rows = {name: summary(found, exact) for name, found in measured.items()}
    if rows["self_speculation"]["equal_to_autoregressive"] != len(exact):
        raise SystemExit("self_speculation differs from autoregressive: nothing is reported")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    result = {
        "commit": commit.strip(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("dlm-serve", "sglang", "torch")},
        "checkpoint": VARIANT,
        "prompts": len(exact),
        "max_new_tokens": MAX_NEW_TOKENS,
        "modes": rows,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
