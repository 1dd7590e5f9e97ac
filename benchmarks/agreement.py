"""Measure how often self-speculation and `auto` differ from autoregression on a GPU, and by how little.

    python benchmarks/agreement.py                  # a tiny model; writes benchmarks/results/agreement.json
    python benchmarks/agreement.py URL [--out NAME] # nano, or nano inflated, on a server that runs

In exact arithmetic they never differ. In bfloat16 a forward over a block rounds differently from one over a
token, which can flip a near-tie. For each difference this asks the server, autoregressively, for the
log-probabilities of both tokens where the answers diverge.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

import report  # noqa: E402
from prompts import mixed_prompts  # noqa: E402
from serving import Server, generate_body  # noqa: E402

MODEL = ROOT / "tests" / "data" / "nld-trained-b32-lora"
NUM_PROMPTS, NUM_TOKENS = 200, 64
FLAGS = ("--dtype", "bfloat16", "--disable-prefill-cuda-graph", "--max-total-tokens", "20000")

EXACT: tuple[dict[str, Any], int] = ({"mode": "autoregressive"}, 16)
DRAFTED: dict[str, tuple[dict[str, Any], int]] = {
    "self_speculation": ({"mode": "self_speculation"}, 16),
    "one forward of 32": ({"mode": "self_speculation", "speculation": "one_forward", "budget": 32}, 8),
    "one forward of 64": ({"mode": "self_speculation", "speculation": "one_forward", "budget": 64}, 4),
    "auto, 1 at once": ({"mode": "auto"}, 1),
    "auto, 64 at once": ({"mode": "auto"}, 64),
}
"""What is compared: options of requests, and how many run at once."""


def random_prompts() -> list[list[int]]:
    """Return prompts of random tokens of the tiny model's vocabulary, without special ones."""
    random.seed(0)
    return [[random.randrange(110, 320) for _ in range(random.randrange(4, 40))] for _ in range(NUM_PROMPTS)]


def answers(server: Server, prompts: list[list[int]], dlm: Mapping[str, Any], concurrency: int) -> list[list[int]]:
    bodies = [generate_body(ids, NUM_TOKENS, dlm=dlm, ignore_eos=True) for ids in prompts]
    return [answer["output_ids"] for answer in server.generate_all(bodies, concurrency)]


def gap(server: Server, context: list[int], first: int, second: int) -> float:
    """Return by how many nats `first` is more likely than `second` after `context`."""
    request: dict[str, Any] = {"return_logprob": True, "token_ids_logprob": [first, second]}
    answer = server.generate(context, 1, mode="autoregressive", request=request)
    by_id = {entry[1]: entry[0] for entry in answer["meta_info"]["output_token_ids_logprobs"][0]}
    return float(by_id[first] - by_id[second])


def gaps(server: Server, prompts: list[list[int]], exact: list[list[int]], drafted: list[list[int]]) -> list[float]:
    """Return, for each answer that differs, by how many nats the exact token is more likely where they part."""
    found = []
    for prompt, expected, seen in zip(prompts, exact, drafted, strict=True):
        parted = next((i for i, pair in enumerate(zip(expected, seen, strict=True)) if pair[0] != pair[1]), None)
        if parted is not None:
            found.append(gap(server, prompt + expected[:parted], expected[parted], seen[parted]))
    return found


def measure(server: Server, prompts: list[list[int]]) -> dict[str, Any]:
    """Return, for each way to decode, how many answers differ from the exact ones, and by how much."""
    exact = answers(server, prompts, *EXACT)
    found = {name: gaps(server, prompts, exact, answers(server, prompts, *way)) for name, way in DRAFTED.items()}
    by_way = {name: {"different": len(nats), "gaps_nats": nats} for name, nats in found.items()}
    return {"prompts": len(prompts), "tokens": NUM_TOKENS, "ways": by_way}


def main() -> None:
    """Print a line for each way, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", nargs="?", metavar="URL")
    parser.add_argument("--out", default="agreement", help="name of the file in benchmarks/results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        log = Path(os.environ.get("OUT", temporary)) / "agreement.log"
        if options.url:
            running = Server(None, urlsplit(options.url).port or 80, log)  # type: ignore[arg-type]  # never stopped
            figures = measure(running, mixed_prompts()[:NUM_PROMPTS])
        else:
            with Server.launch(MODEL, *FLAGS, log=log) as server:
                figures = measure(server, random_prompts())
    for name, way in figures["ways"].items():
        largest = max(map(abs, way["gaps_nats"]), default=0.0)
        print(f"{name}: {way['different']} of {figures['prompts']} answers differ, by at most {largest:.4f} nats")
    report.write(options.out, figures, "sglang", "torch", "triton")


if __name__ == "__main__":
    main()
