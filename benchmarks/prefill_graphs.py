"""Compare two servers of a model, one that captures a prefill in one CUDA graph and one that does so in pieces.

    python -m sglang.launch_server --model-path DIR --mem-fraction-static 0.6 --max-total-tokens 120000
    python -m sglang.launch_server --model-path DIR --mem-fraction-static 0.6 --max-total-tokens 120000 --port 31000 \
        --cuda-graph-backend-prefill breakable
    python benchmarks/prefill_graphs.py http://127.0.0.1:30000 http://127.0.0.1:31000

Both may share a GPU: one is idle while the other is measured. Asks both the same prompts, alone and 16 at once, and
counts the answers that are the same; keeps each busy in turn while requests decode in one way, and takes down the
output tokens of each second; and times first tokens, behind a prefix that is cached and without one.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import report
from pinned_windows import AUTOREGRESSIVE, SELF_SPECULATION, Server, Window
from prompts import PROMPTS

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
PROMPT_TOKENS = ((0, 30), (0, 200), (0, 900), (2000, 30), (6000, 30), (14000, 30), (28000, 30))
"""Tokens that are cached, and tokens behind them."""
NUM_PROMPTS, NUM_FIRST_TOKENS, NUM_TOKENS = 48, 12, 96
ORDINARY = range(300, 400)
"""Tokens that prompts of random ones consist of."""

Servers = dict[str, str]
"""Addresses, by what the server captures."""


def ask(url: str, prompt: list[int], num_tokens: int, mode: str = AUTOREGRESSIVE) -> tuple[list[int], float]:
    """Return the tokens of an answer, and the milliseconds that it took."""
    sampling = {"temperature": 0, "max_new_tokens": num_tokens, "custom_params": {"dlm": {"mode": mode}}}
    body = json.dumps({"input_ids": prompt, "sampling_params": sampling}).encode()
    request = urllib.request.Request(url + "/generate", body, {"Content-Type": "application/json"})
    start = time.perf_counter()
    with urllib.request.urlopen(request, timeout=120) as response:
        answer = json.load(response)
    return answer["output_ids"], 1000 * (time.perf_counter() - start)


def same_answers(servers: Servers) -> dict[str, Any]:
    """Return how many answers are the same, by mode and by how many are asked for at once."""
    prompts = [prompt for pair in zip(PROMPTS["long"](), PROMPTS["tasks"](), strict=False) for prompt in pair]
    found: dict[str, Any] = {"of": NUM_PROMPTS}
    for mode in (AUTOREGRESSIVE, SELF_SPECULATION):
        for at_once in (1, 16):
            with ThreadPoolExecutor(at_once) as pool:
                asked = [
                    [pool.submit(ask, url, prompt, NUM_TOKENS, mode) for prompt in prompts[:NUM_PROMPTS]]
                    for url in servers.values()
                ]
            one, other = ([answer.result()[0] for answer in answers] for answers in asked)
            found[f"{mode}, {at_once} at once"] = sum(a == b for a, b in zip(one, other, strict=True))
    return found


def tokens_per_s(servers: Servers, seconds: int, settling: float) -> dict[str, dict[str, list[int]]]:
    """Return the output tokens of each second, by load and by server, which are measured in turn, twice."""
    found: dict[str, dict[str, list[int]]] = {}
    for _ in range(2):
        for concurrency, way in LOADS:
            for name, url in servers.items():
                server, clients = Server(url), Clients(url, PROMPTS["long"]())
                of_load = found.setdefault(f"{concurrency}, {way}", {}).setdefault(name, [])
                with clients.busy({}, concurrency):
                    server.pin(way)
                    time.sleep(settling)
                    for _ in range(seconds):
                        window, before = Window(), server.replicas()
                        time.sleep(1.0)
                        of_load.append(round(window.add(before, server.replicas())))
                server.pin(AUTO)
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
    parser.add_argument("--seconds", type=int, default=6, help="for each load, twice")
    parser.add_argument("--settling", type=float, default=2.0, help="seconds before that")
    parser.add_argument("--context", type=int, default=4096, help="tokens that a prompt may have")
    options = parser.parse_args()
    servers = {"one_graph": options.one_graph, "pieces": options.pieces}
    figures = {
        "same_answers": same_answers(servers),
        "tokens_per_s": tokens_per_s(servers, options.seconds, options.settling),
        "first_token_ms": first_token_ms(servers, options.context),
    }
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    report.write("prefill_graphs", figures, "sglang", "torch")


if __name__ == "__main__":
    main()
