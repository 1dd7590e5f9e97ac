"""Measure how often self-speculation differs from autoregression on a GPU, and by how little.

    python benchmarks/agreement.py     # prints a summary, writes benchmarks/results/agreement.json

In exact arithmetic they never differ. In bfloat16 a forward over a block rounds differently from one over a
token, which can flip a near-tie. For each difference this asks the server, autoregressively, for the
log-probabilities of both tokens where the answers diverge.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

import report  # noqa: E402
from serving import Server, generate_body  # noqa: E402

MODEL = ROOT / "tests" / "data" / "nld-trained-b32-lora"
NUM_PROMPTS, NUM_TOKENS = 200, 64
FLAGS = ("--dtype", "bfloat16", "--disable-prefill-cuda-graph", "--max-total-tokens", "20000")


def prompts() -> list[list[int]]:
    """Return prompts of random tokens of the vocabulary, without special ones."""
    random.seed(0)
    return [[random.randrange(110, 320) for _ in range(random.randrange(4, 40))] for _ in range(NUM_PROMPTS)]


def answers(server: Server, mode: str) -> list[list[int]]:
    bodies = [generate_body(ids, NUM_TOKENS, mode=mode, ignore_eos=True) for ids in prompts()]
    return [answer["output_ids"] for answer in server.generate_all(bodies, 16)]


def gap(server: Server, context: list[int], first: int, second: int) -> float:
    """Return by how many nats `first` is more likely than `second` after `context`."""
    request: dict[str, Any] = {"return_logprob": True, "token_ids_logprob": [first, second]}
    answer = server.generate(context, 1, mode="autoregressive", request=request)
    by_id = {entry[1]: entry[0] for entry in answer["meta_info"]["output_token_ids_logprobs"][0]}
    return float(by_id[first] - by_id[second])


def measure(server: Server) -> dict[str, Any]:
    gaps = []
    for prompt, exact, drafted in zip(
        prompts(), answers(server, "autoregressive"), answers(server, "self_speculation"), strict=True
    ):
        parted = next((i for i, pair in enumerate(zip(exact, drafted, strict=True)) if pair[0] != pair[1]), None)
        if parted is not None:
            gaps.append(gap(server, prompt + exact[:parted], exact[parted], drafted[parted]))
    return {"prompts": NUM_PROMPTS, "tokens": NUM_TOKENS, "different": len(gaps), "gaps_nats": gaps}


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        log = Path(os.environ.get("OUT", temporary)) / "agreement.log"
        with Server.launch(MODEL, *FLAGS, log=log) as server:
            figures = measure(server)
    largest = max((abs(gap) for gap in figures["gaps_nats"]), default=0.0)
    print(f"{figures['different']} of {NUM_PROMPTS} answers differ, by at most {largest:.4f} nats where they part")
    report.write("agreement", figures, "sglang", "torch", "triton")


if __name__ == "__main__":
    main()
