"""Measure how long requests wait when others arrive: Poisson arrivals at shares of a server's capacity, by mode.

    python benchmarks/arrivals.py URL [--plain URL] [--loads 0.5 0.9] [--seconds 20] [--prompts tasks] [--out NAME]

The server runs already; `--plain` is one of SGLang without the plugin. For each mode that is offered clients that send
one request after another find the capacity, in requests per second. Then requests arrive at random at a share of it,
whether or not others are answered. A request is greedy, streamed, and counts from when it was due. Of each load:

- `first_token_ms`: until the first chunk of an answer;
- `chunk_ms`: between the chunks of an answer, which brings one token or several;
- `token_ms`: the same per token. A chunk of n tokens counts n times, each with an n-th of its time;
- `forward_ms`: the same per forward pass of the request. Its 99th percentile in units of its median is in how many
  steps a request gets one of its own; the target is at most 3. A block takes several, over which a delay is spread:
  `--dlm '{"block_length": 4}'` shows it better.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import multiprocessing
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import report
from prompts import task_prompts

from dlm_serve.client import MODES

PLAIN = "plain SGLang"
WAYS = (*MODES, "auto")
MOST_AT_ONCE = 1024
"""Requests that one process has under way."""


@dataclass(frozen=True)
class Chunk:
    """A part of a streamed answer."""

    seconds: float
    """On the clock of `time.perf_counter`, which processes share."""
    num_tokens: int
    """So far, like `num_forwards`."""
    num_forwards: int


@dataclass(frozen=True)
class Answer:
    """When an answer came."""

    due: float
    chunks: list[Chunk]

    def share(self, start: float, end: float) -> float:
        """Return the part of its time that lies between `start` and `end`."""
        last = self.chunks[-1].seconds
        return max(min(last, end) - max(self.due, start), 0.0) / (last - self.due)


@dataclass(frozen=True)
class Load:
    """Requests of one kind that one process sends."""

    url: str
    way: str
    prompts: Sequence[list[int]]
    dlm: dict[str, Any]
    max_tokens: int
    ignore_eos: bool
    seed: int

    def ask(self, prompt: list[int], due: float) -> Answer:
        """Return the answer to a prompt. Raises RuntimeError, with the server's words, if there is none."""
        sampling: dict[str, Any] = {
            "temperature": 0,
            "max_new_tokens": self.max_tokens,
            "ignore_eos": self.ignore_eos,
        }
        if self.way != PLAIN:
            refused = ("block_length",) if self.way == "autoregressive" else ()  # it decodes without blocks
            asked = {name: value for name, value in self.dlm.items() if name not in refused}
            sampling["custom_params"] = {"dlm": {**asked, "mode": self.way}}
        body = json.dumps({"input_ids": prompt, "sampling_params": sampling, "stream": True})
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=300)
        connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise RuntimeError(response.read().decode())
        lines = [(time.perf_counter(), line) for line in response]  # read later: others wait meanwhile
        connection.close()
        return Answer(due, [_chunk(at, line) for at, line in lines if line.startswith(b"data: {")])

    def saturate(self, num_clients: int, end: float) -> list[Answer]:
        """Let clients send one request after another until `end`."""
        numbers = itertools.count(self.seed)

        def client(_: int) -> list[Answer]:
            answers = []
            while (now := time.perf_counter()) < end:
                answers.append(self.ask(self.prompts[next(numbers) % len(self.prompts)], now))
            return answers

        with ThreadPoolExecutor(num_clients) as pool:
            return [answer for answers in pool.map(client, range(num_clients)) for answer in answers]

    def arrive(self, rate: float, end: float) -> list[Answer]:
        """Send `rate` requests per second, independently of each other, until `end`; wait for all answers."""
        chance, due, asked = random.Random(self.seed), time.perf_counter(), []
        with ThreadPoolExecutor(MOST_AT_ONCE) as pool:
            while (due := due + chance.expovariate(rate)) < end:
                time.sleep(max(due - time.perf_counter(), 0.0))
                asked.append(pool.submit(self.ask, chance.choice(self.prompts), due))
        return [answer.result() for answer in asked]


def _chunk(at: float, line: bytes) -> Chunk:
    content = json.loads(line.removeprefix(b"data: "))
    if "error" in content:
        raise RuntimeError(str(content["error"]))
    num_tokens = content["meta_info"]["completion_tokens"]
    return Chunk(at, num_tokens, content["meta_info"].get("dlm", {"nfe": num_tokens - 1})["nfe"])


def random_prompts() -> list[list[int]]:
    """Return prompts of random tokens, which are in every vocabulary."""
    chance = random.Random(5)
    return [chance.choices(range(10, 100), k=chance.randrange(32, 256)) for _ in range(256)]


PROMPTS: dict[str, Callable[[], list[list[int]]]] = {"tasks": task_prompts, "random": random_prompts}


class Senders:
    """Processes that send requests together: one could not read so many chunks."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._pool = ProcessPoolExecutor(number, mp_context=multiprocessing.get_context("fork"))

    def run(self, send: Callable[..., list[Answer]], loads: Sequence[Load], *arguments: float) -> list[Answer]:
        """Return the answers that all processes got, each with a load of its own."""
        running = [self._pool.submit(send, load, *arguments) for load in loads]
        return [answer for process in running for answer in process.result()]

    def loads(self, **fields: Any) -> list[Load]:
        """Return a load for each process."""
        return [Load(seed=seed, **fields) for seed in range(self._number)]

    def capacity(self, loads: Sequence[Load], num_clients: int, seconds: float) -> dict[str, float]:
        """Return requests and tokens per second, after a third of the time to warm up."""
        start = time.perf_counter() + seconds / 3
        end = start + seconds
        answers = self.run(Load.saturate, loads, max(1, num_clients // self._number), end)
        requests = sum(answer.share(start, end) for answer in answers)
        tokens = sum(answer.share(start, end) * answer.chunks[-1].num_tokens for answer in answers)
        return {"requests_per_s": round(requests / seconds, 2), "tokens_per_s": round(tokens / seconds, 1)}

    def arrivals(self, loads: Sequence[Load], rate: float, seconds: float) -> dict[str, Any]:
        """Return the figures of requests that arrive at `rate` per second. Poisson processes add up to one."""
        answers = self.run(Load.arrive, loads, rate / self._number, time.perf_counter() + seconds)
        return {"requests_per_s": round(rate, 2), "requests": len(answers), **figures(answers)}


def figures(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the percentiles that the top of this file explains."""
    gaps = [pair for answer in answers for pair in pairwise(answer.chunks)]
    seconds = [after.seconds - before.seconds for before, after in gaps]
    tokens = [after.num_tokens - before.num_tokens for before, after in gaps]
    forwards = [max(after.num_forwards - before.num_forwards, 1) for before, after in gaps]
    per_forward = [gap / number for gap, number in zip(seconds, forwards, strict=True)]
    per_token = [gap / number for gap, number in zip(seconds, tokens, strict=True) for _ in range(number)]
    return {
        "first_token_ms": percentiles([1000 * (answer.chunks[0].seconds - answer.due) for answer in answers]),
        "chunk_ms": percentiles([1000 * gap for gap in seconds]),
        "token_ms": percentiles([1000 * gap for gap in per_token]),
        "forward_ms": percentiles([1000 * gap for gap in per_forward]),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the 99th percentile."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": round(cuts[49], 2), "p99": round(cuts[98], 2)}


def offered(load: Load) -> bool:
    """Return whether the server takes requests of this kind."""
    try:
        return bool(load.ask(load.prompts[0], time.perf_counter()).chunks)
    except RuntimeError as refusal:
        sys.stdout.write(f"{load.way}: {refusal}\n")
        return False


def main() -> None:
    """Print the figures of each way to decode at each load, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", metavar="URL")
    parser.add_argument("--plain", metavar="URL", help="a server of SGLang without the plugin")
    parser.add_argument("--ways", nargs="+", default=WAYS, help="modes, of which those that are offered are measured")
    parser.add_argument("--loads", nargs="+", type=float, default=(0.5, 0.9), help="shares of the capacity")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--clients", type=int, default=64, help="that find the capacity")
    parser.add_argument("--processes", type=int, default=1, help="that send requests")
    parser.add_argument("--prompts", choices=PROMPTS, default="tasks")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--dlm", type=json.loads, default={}, metavar="JSON", help="options of all modes")
    parser.add_argument("--ignore-eos", action="store_true", help="let all answers have so many tokens")
    parser.add_argument("--out", default="arrivals", help="name of the file in benchmarks/results")
    options = parser.parse_args()
    senders, prompts = Senders(options.processes), PROMPTS[options.prompts]()
    ways = [(way, options.url) for way in options.ways] + ([(PLAIN, options.plain)] if options.plain else [])
    fields = {name: getattr(options, name) for name in ("dlm", "max_tokens", "ignore_eos")}
    settings = {name: getattr(options, name) for name in ("seconds", "clients", "prompts")} | fields
    results: dict[str, Any] = {}
    for way, url in ways:
        loads = senders.loads(url=url, way=way, prompts=prompts, **fields)
        is_another_name = way == "auto" and "self_speculation" not in results
        if is_another_name or not offered(loads[0]):
            continue
        senders.capacity(loads, options.clients, options.seconds / 2)  # compiles kernels, and lets estimates settle
        capacity = senders.capacity(loads, options.clients, options.seconds)
        results[way] = {"capacity": capacity, "loads": {}}
        sys.stdout.write(f"{way}: {capacity}\n")
        for share in options.loads:
            found = senders.arrivals(loads, share * capacity["requests_per_s"], options.seconds)
            results[way]["loads"][str(share)] = found
            sys.stdout.write(f"  at {share}: {found}\n")
        report.write(options.out, {**settings, "ways": results}, "sglang", "torch")


if __name__ == "__main__":
    main()
