"""Measure decode speed on a GPU at the shape of Nemotron-Labs-Diffusion-8B, against SGLang without dlm-serve.

    python benchmarks/decode_speed.py [--layers N]     # prints a table, writes benchmarks/results/decode_speed.json

Both servers run side by side on random weights with the same settings, and answer in turn. The time of a step
is the time difference between two answers of different lengths over the difference of their forward passes, so
that prefill and HTTP cancel out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

import report  # noqa: E402
import step_profile  # noqa: E402
from serving import Server, generate_body  # noqa: E402

from dlm_serve.models.shape import RELEASES  # noqa: E402

SMALL = ROOT / "tests" / "data" / "nld-trained-b32-lora"
PLAIN = {"architectures": ["Ministral3ForCausalLM"], "model_type": "ministral3", "auto_map": {}}
# A pool for 127 requests of 1024 tokens and what they generate; both servers share the GPU and are asked in turn.
FLAGS = ("--load-format", "dummy", "--skip-server-warmup", "--max-total-tokens", "220000")
REPEATS = 3
CONCURRENCIES = (1, 8, 32, 128)


def write_model(folder: Path, changes: dict[str, Any]) -> Path:
    """Create a folder with the 8B shape's configuration and a tokenizer, without weights."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(SMALL / name, folder)
    config = {**json.loads((SMALL / "config.json").read_text()), **RELEASES["8b"], "torch_dtype": "bfloat16", **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def prompt(length: int) -> list[int]:
    """Return random tokens that are in every vocabulary, so that no prefix is cached."""
    return [random.randrange(200, 50_000) for _ in range(length)]


def generate(
    server: Server, prompts: list[list[int]], num_tokens: int, dlm: dict[str, Any], **sampling: Any
) -> list[dict[str, Any]]:
    """Return the answers to a batch of prompts sent as one request."""
    body = generate_body(prompts[0], num_tokens, dlm=dlm, ignore_eos=True, **sampling)
    response = server.post("/generate", {**body, "input_ids": prompts})
    response.raise_for_status()
    answers: list[dict[str, Any]] = response.json()
    return answers


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def throughput(server: Server, concurrency: int, dlm: dict[str, Any]) -> float:
    """Return output tokens per second for 128 tokens in and 256 out."""
    prompts = [prompt(128) for _ in range(concurrency)]
    return concurrency * 256 / seconds(lambda: generate(server, prompts, 256, dlm))


def prefill_ms(server: Server, dlm: dict[str, Any]) -> float:
    """Return the milliseconds to the first token after a prompt of 4096."""
    tokens = prompt(4096)
    return 1e3 * seconds(lambda: generate(server, [tokens], 1, dlm))


def step_ms(server: Server, batch: int, context: int, dlm: dict[str, Any], **sampling: Any) -> float:
    """Return the milliseconds per forward pass of `batch` equal requests."""

    def run(num_tokens: int) -> tuple[float, float]:
        prompts, answers = [prompt(context) for _ in range(batch)], []
        took = seconds(lambda: answers.extend(generate(server, prompts, num_tokens, dlm, **sampling)))
        forwards = max(a["meta_info"]["dlm"]["nfe"] if dlm else num_tokens - 1 for a in answers)
        return took, forwards

    (short, few), (long, many) = run(33), run(33 + 128)
    return 1e3 * (long - short) / (many - few)


@contextmanager
def one_speculating(server: Server) -> Iterator[None]:
    """Run a self-speculation request within this context."""
    rid = f"long-{random.random()}"
    body = generate_body(prompt(128), 4000, mode="self_speculation", ignore_eos=True, request={"rid": rid})
    sender = threading.Thread(target=lambda: requests.post(f"{server.url}/generate", json=body, timeout=300))
    sender.start()
    time.sleep(0.5)
    yield
    requests.post(f"{server.url}/abort_request", json={"rid": rid}, timeout=30).raise_for_status()
    sender.join()


AUTOREGRESSIVE = {"mode": "autoregressive"}


def fixed_schedule(width: int) -> dict[str, Any]:
    """Return options for diffusion that fixes one token per forward, so that each block takes `width` forwards."""
    return {"mode": "diffusion", "block_length": width, "threshold": None, "steps": max(1, width - 1)}


def measure(name: str, action: Callable[[], float], results: dict[str, list[float]]) -> None:
    action()  # warms up what compiles at first use
    results[name] = [action() for _ in range(REPEATS)]
    print(f"{name:60} {statistics.median(results[name]):10.2f}  {[round(v, 2) for v in results[name]]}", flush=True)


def measure_both(servers: dict[str, tuple[Server, dict[str, Any]]], results: dict[str, list[float]]) -> None:
    """Measure on both servers what SGLang can do without dlm-serve."""
    for concurrency in CONCURRENCIES:
        for name, (server, dlm) in servers.items():
            measure(f"{name} tok/s at {concurrency}", partial(throughput, server, concurrency, dlm), results)
    for name, (server, dlm) in servers.items():
        measure(f"{name} prefill of 4096, ms", partial(prefill_ms, server, dlm), results)
        for batch in (1, 8):
            measure(f"{name} step ms, batch {batch}, 1024", partial(step_ms, server, batch, 1024, dlm), results)


def measure_blocks(server: Server, results: dict[str, list[float]]) -> None:
    """Measure what only dlm-serve can do."""
    for batch, width in ((1, 4), (1, 8), (1, 16), (1, 32), (8, 8), (8, 32), (32, 8), (32, 32)):
        action = partial(step_ms, server, batch, 1024, fixed_schedule(width))
        measure(f"block step ms, batch {batch}, width {width}, 1024", action, results)
    for context in (128, 1024):
        action = partial(step_ms, server, 127, context, AUTOREGRESSIVE)
        measure(f"step ms, batch 127, {context}", action, results)
        with one_speculating(server):
            measure(f"step ms, batch 127, {context}, beside one self-speculation", action, results)


def summary(results: dict[str, list[float]]) -> dict[str, float]:
    """Return the ratios that matter."""
    medians = {name: statistics.median(values) for name, values in results.items()}
    ratios = {
        "block step of width 32 / autoregressive step, batch 1": medians["block step ms, batch 1, width 32, 1024"]
        / medians["dlm-serve step ms, batch 1, 1024"],
        "block step of width 8 / autoregressive step, batch 8": medians["block step ms, batch 8, width 8, 1024"]
        / medians["dlm-serve step ms, batch 8, 1024"],
        **{
            f"127 autoregressive beside one self-speculation / without, {context}": medians[
                f"step ms, batch 127, {context}, beside one self-speculation"
            ]
            / medians[f"step ms, batch 127, {context}"]
            for context in (128, 1024)
        },
        "prefill speed / plain SGLang": medians["SGLang prefill of 4096, ms"]
        / medians["dlm-serve prefill of 4096, ms"],
    }
    for c in CONCURRENCIES:
        ratios[f"tok/s / plain SGLang at {c}"] = medians[f"dlm-serve tok/s at {c}"] / medians[f"SGLang tok/s at {c}"]
    return ratios


def table(figures: dict[str, Any]) -> str:
    """Return the figures as docs/performance.md shows them."""
    ms = {name: f"{statistics.median(values):.2f} ms" for name, values in figures["measured"].items()}
    ratios = {name: f"{ratio:.2f}" for name, ratio in figures["ratios"].items()}
    speeds = ", ".join(ratios[f"tok/s / plain SGLang at {c}"] for c in CONCURRENCIES)
    beside = "127 autoregressive beside one self-speculation / without, 1024"
    rows = {
        "autoregressive step, batch 1": f"{ms['dlm-serve step ms, batch 1, 1024']}; "
        f"plain SGLang {ms['SGLang step ms, batch 1, 1024']}",
        "block step of width 32, batch 1": f"{ms['block step ms, batch 1, width 32, 1024']}; "
        f"{ratios['block step of width 32 / autoregressive step, batch 1']} of an autoregressive one",
        "block step of width 8, batch 8": f"{ms['block step ms, batch 8, width 8, 1024']}; "
        f"{ratios['block step of width 8 / autoregressive step, batch 8']} of an autoregressive one",
        "step of 127 autoregressive requests beside one that self-speculates": f"{ratios[beside]} of a step without it",
        "prefill of 4096 tokens, speed over plain SGLang": ratios["prefill speed / plain SGLang"],
        "`autoregressive` over plain SGLang, 128 tokens in and 256 out, at concurrency 1, 8, 32, 128": speeds,
    }
    return "\n".join(["| what | measured |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=34, help="fewer, to try the script")
    layers = {"num_hidden_layers": parser.parse_args().layers}
    results: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(os.environ.get("OUT", temporary))
        plain = write_model(Path(temporary) / "plain", {**PLAIN, **layers})
        ours = write_model(Path(temporary) / "ours", layers)
        with (
            Server.launch(plain, *FLAGS, log=folder / "plain.log", env={"SGLANG_PLUGINS": "none"}) as without,
            Server.launch(ours, *FLAGS, log=folder / "ours.log") as server,
        ):
            measure_both({"SGLang": (without, {}), "dlm-serve": (server, AUTOREGRESSIVE)}, results)
            measure_blocks(server, results)
            profile = step_profile.measure(server, partial(generate, server, [prompt(1024)], 40, fixed_schedule(32)))
    ratios = summary(results)
    for name, ratio in ratios.items():
        print(f"{name:60} {ratio:6.3f}")
    figures = {"layers": layers["num_hidden_layers"], "measured": results, "ratios": ratios, "step_profile": profile}
    report.write("decode_speed", figures, "sglang", "torch", "triton")


if __name__ == "__main__":
    main()
