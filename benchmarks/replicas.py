"""Ask two replicas of nano behind one address, each on a GPU of its own where there are two, in every mode.

    python benchmarks/replicas.py     # prints what it found, writes benchmarks/results/replicas.json

Counts how many prompts each replica answered, in how many answers self-speculation and autoregression agree, and which
replicas have metrics.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

import report  # noqa: E402
from prompts import task_prompts  # noqa: E402
from serving import Server, generate_body  # noqa: E402

MODES = ("autoregressive", "self_speculation", "diffusion")
NUM_PROMPTS, NUM_TOKENS, CONCURRENCY = 96, 128, 32
FLAGS = ("--dp", "2", "--enable-metrics", "--max-total-tokens", "32768", "--max-running-requests", "32")


def measure(server: Server) -> dict[str, Any]:
    """Return what the replicas answered and count."""
    prompts = task_prompts()[:NUM_PROMPTS]
    answers = {
        mode: server.generate_all([generate_body(ids, NUM_TOKENS, mode=mode) for ids in prompts], CONCURRENCY)
        for mode in MODES
    }
    ids = {mode: [answer["output_ids"] for answer in found] for mode, found in answers.items()}
    alike = sum(one == other for one, other in zip(ids["self_speculation"], ids["autoregressive"], strict=True))
    metrics = requests.get(f"{server.url}/metrics", timeout=30).text
    counting = set(re.findall(r'^dlm_tokens_total\{.*dp_rank="(\d+)"', metrics, re.MULTILINE))
    return {
        "answers": len(prompts),
        "self_speculation as autoregressive": alike,
        "by replica": {
            mode: Counter(str(answer["meta_info"]["dp_rank"]) for answer in found) for mode, found in answers.items()
        },
        "replicas with metrics": sorted(counting),
    }


def main() -> None:
    """Print what was found, and write it."""
    with tempfile.TemporaryDirectory() as folder, Server.launch("nano", *FLAGS, log=Path(folder, "log")) as server:
        found = measure(server)
    print(found)
    report.write("replicas", {"model": "nano", "replicas": 2, **found}, "sglang", "torch")


if __name__ == "__main__":
    main()
