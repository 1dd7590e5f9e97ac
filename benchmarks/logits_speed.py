"""Measure what grammars, penalties and log-probabilities cost on a server that runs.

    python benchmarks/logits_speed.py URL [--seconds 3]     # writes benchmarks/results/logits_speed.json

Clients send one request after another, greedily, to a model with nano's tokenizer; answers end where they end.
"""

from __future__ import annotations

import argparse
import json
import threading
from typing import Any

import report
from router import task_prompts

from dlm_serve.evaluation.load import Cell, Clients

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "city": {"type": "string"},
        "job": {"type": "string"},
    },
    "required": ["name", "age", "city", "job"],
    "additionalProperties": False,
}
WITH_GRAMMAR = {"sampling_params": {"json_schema": json.dumps(SCHEMA)}}
ASKED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "penalties": {"sampling_params": {"frequency_penalty": 0.05, "presence_penalty": 0.05, "min_new_tokens": 2}},
    "logprobs": {"return_logprob": True},
    "top logprobs": {"return_logprob": True, "top_logprobs_num": 5},
}
AUTOREGRESSIVE, SELF_SPECULATION = {"mode": "autoregressive"}, {"mode": "self_speculation"}
TURNS = 3
WARM_UP = 0.5


def in_turns(
    measured: dict[str, tuple[Clients, dict[str, Any]]], concurrency: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """Return the figures of each of `measured`: clients, and how their requests decode."""
    cells = {name: Cell() for name in measured}
    for turn in range(TURNS + 1):
        for name, (clients, options) in measured.items():
            clients.measure(cells[name] if turn else Cell(), options, concurrency, seconds / TURNS, WARM_UP)
    return {name: cell.summary() for name, cell in cells.items()}


def grammars_beside(url: str, prompts: list[list[int]], seconds: float) -> dict[str, float]:
    """Return the milliseconds per forward of 12 requests without a grammar, beside 4 others with and without one."""
    plain, constrained = Clients(url, prompts), Clients(url, prompts, WITH_GRAMMAR)
    found: dict[str, float] = {}
    cells = {"none": Cell(), "4 of 16": Cell()}
    for turn in range(TURNS + 1):
        for name, four in (("none", plain), ("4 of 16", constrained)):
            cell = cells[name] if turn else Cell()
            beside = threading.Thread(
                target=four.measure, args=(Cell(), SELF_SPECULATION, 4, seconds / TURNS, WARM_UP), daemon=True
            )
            beside.start()
            plain.measure(cell, SELF_SPECULATION, 12, seconds / TURNS, WARM_UP)
            beside.join()
    for name, cell in cells.items():
        forwards_per_token = sum(s["nfe"] for s in cell.statistics) / sum(
            sum(s["tokens"].values()) for s in cell.statistics
        )
        found[name] = 1000 * 12 * cell.seconds / (cell.tokens * forwards_per_token)
    return found


def main() -> None:
    """Print a line for each figure, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", metavar="URL")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    options = parser.parse_args()
    extraction, tasks = task_prompts(["json"]), task_prompts()
    json_answers = in_turns(
        {
            "autoregressive": (Clients(options.url, extraction, WITH_GRAMMAR), AUTOREGRESSIVE),
            "self_speculation": (Clients(options.url, extraction, WITH_GRAMMAR), SELF_SPECULATION),
        },
        1,
        options.seconds,
    )
    asked = {
        str(concurrency): in_turns(
            {name: (Clients(options.url, tasks, request), SELF_SPECULATION) for name, request in ASKED.items()},
            concurrency,
            options.seconds,
        )
        for concurrency in (1, 8)
    }
    beside = grammars_beside(options.url, extraction, options.seconds)
    speed = json_answers["self_speculation"]["tokens_per_s"] / json_answers["autoregressive"]["tokens_per_s"]
    print(f"JSON by a schema at one request: {speed:.2f} times autoregression's tokens per second; {json_answers}")
    over_nothing_asked = {
        concurrency: {
            name: round(row[name]["tokens_per_s"] / row["nothing"]["tokens_per_s"], 3)
            for name in ASKED
            if name != "nothing"
        }
        for concurrency, row in asked.items()
    }
    print(f"over self_speculation that is asked nothing, by requests at once: {over_nothing_asked}")
    print(f"12 rows beside 4 with grammars: {beside['4 of 16'] / beside['none']:.3f} of the time per forward; {beside}")
    figures = {"json": json_answers, "asked": asked, "over_nothing_asked": over_nothing_asked}
    report.write("logits_speed", {**figures, "ms_per_forward_beside": beside}, "sglang", "torch", "xgrammar")


if __name__ == "__main__":
    main()
