"""Compare two servers of a model: prefills in one CUDA graph each, and in pieces.

    python -m sglang.launch_server --model-path DIR --mem-fraction-static 0.6 --max-total-tokens 120000
    python -m sglang.launch_server --model-path DIR --mem-fraction-static 0.6 --max-total-tokens 120000 --port 31000 \
        --cuda-graph-backend-prefill breakable
    python benchmarks/prefill_graphs.py http://127.0.0.1:30000 http://127.0.0.1:31000 [--context 32768]

Both may share a GPU: one is idle while the other is measured. Asks both the same prompts, alone and 16 at once, and
counts the answers that are the same; keeps each busy in turn while requests decode in one way, and counts output
tokens; and times first tokens, behind a prefix that is cached and without one.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import report
from pinned_windows import AUTOREGRESSIVE, SELF_SPECULATION, Server, Window
from prompts import PROMPTS
from serving import generate_body

from dlm_serve.evaluation.load import Clients
from dlm_serve.evaluation.load_plot import AUTO

LOADS = (
    (1, f"{SELF_SPECULATION}/32"),
    (4, f"{SELF_SPECULATION}/32"),
    (16, f"{SELF_SPECULATION}/32"),
    (64, f"{SELF_SPECULATION}/16"),
    (128, AUTOREGRESSIVE),
)
"""Requests at once, and how they decode."""
PROMPT_TOKENS = (
    *((0, new) for new in (30, 200, 900, 2000, 4000)),
    *((cached, 30) for cached in (2000, 6000, 14000, 28000)),
)
"""Tokens that are cached, and tokens behind them."""
NUM_ALONE, NUM_IN_CROWD, NUM_TOKENS = 16, 48, 96
NUM_FIRST_TOKENS = 12
ORDINARY = range(300, 400)
"""Tokens that prompts of random ones consist of."""

Servers = dict[str, str]
"""Addresses, by what the server captures."""


def ask(url: str, prompt: list[int], num_tokens: int, mode: str = AUTOREGRESSIVE) -> tuple[list[int], float]:
    """Return the tokens of an answer, and the milliseconds that it took. Raises HTTPError if there is none."""
    start = time.perf_counter()
    response = requests.post(f"{url}/generate", json=generate_body(prompt, num_tokens, mode=mode), timeout=120)
    took = 1000 * (time.perf_counter() - start)
    response.raise_for_status()
    return response.json()["output_ids"], took


def same_answers(servers: Servers) -> dict[str, str]:
    """Return how many answers are the same, by mode and by how many are asked for at once."""
    prompts = [prompt for pair in zip(PROMPTS["long"](), PROMPTS["tasks"](), strict=False) for prompt in pair]
    found: dict[str, str] = {}
    for mode in (AUTOREGRESSIVE, SELF_SPECULATION):
        for at_once, number in ((1, NUM_ALONE), (16, NUM_IN_CROWD)):
            with ThreadPoolExecutor(at_once) as pool:
                asked = [
                    [pool.submit(ask, url, prompt, NUM_TOKENS, mode) for prompt in prompts[:number]]
                    for url in servers.values()
                ]
            one, other = ([answer.result()[0] for answer in answers] for answers in asked)
            found[f"{mode}, {at_once} at once"] = f"{sum(map(list.__eq__, one, other))} of {number}"
    return found


def tokens_per_s(servers: Servers, turns: int, seconds: float, settling: float) -> dict[str, dict[str, list[int]]]:
    """Return the output tokens per second of each turn, by load and by server."""
    found: dict[str, dict[str, list[int]]] = {}
    for _ in range(turns):
        for concurrency, way in LOADS:
            for name, url in servers.items():
                server, clients, window = Server(url), Clients(url, PROMPTS["long"]()), Window()
                with clients.busy({}, concurrency):
                    server.pin(way)
                    time.sleep(settling)
                    before = server.replicas()
                    time.sleep(seconds)
                    speed = window.add(before, server.replicas())
                server.pin(AUTO)
                found.setdefault(f"{concurrency}, {way}", {}).setdefault(name, []).append(round(speed))
    return found


def first_token_ms(servers: Servers, most: int) -> dict[str, dict[str, float]]:
    """Return the median milliseconds of an answer of one token, by tokens cached and new, of prompts up to `most`."""
    chance = random.Random(1)
    found: dict[str, dict[str, float]] = {}
    for num_cached, num_new in PROMPT_TOKENS:
        if num_cached + num_new >= most:
            continue
        prefix = chance.choices(ORDINARY, k=num_cached)
        times: dict[str, list[float]] = {name: [] for name in servers}
        for url in servers.values():
            ask(url, prefix + chance.choices(ORDINARY, k=num_new), 1)
        for _ in range(NUM_FIRST_TOKENS):
            prompt = prefix + chance.choices(ORDINARY, k=num_new)
            for name, url in servers.items():
                times[name].append(ask(url, prompt, 1)[1])
        medians = {name: round(statistics.median(ms), 2) for name, ms in times.items()}
        found[f"{num_cached} cached, {num_new} new"] = medians
    return found


def main() -> None:
    """Print what was found, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("one_graph", metavar="URL", help="a server with one CUDA graph for each prefill")
    parser.add_argument("pieces", metavar="URL", help="one with --cuda-graph-backend-prefill breakable")
    parser.add_argument("--turns", type=int, default=4, help="of each load")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    parser.add_argument("--settling", type=float, default=1.5, help="seconds before that")
    parser.add_argument("--context", type=int, default=4096, help="tokens that a prompt may have")
    options = parser.parse_args()
    servers = {"one_graph": options.one_graph, "pieces": options.pieces}
    figures = {
        "same_answers": same_answers(servers),
        "tokens_per_s": tokens_per_s(servers, options.turns, options.seconds, options.settling),
        "first_token_ms": first_token_ms(servers, options.context),
    }
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    report.write("prefill_graphs", figures, "sglang", "torch")


if __name__ == "__main__":
    main()
