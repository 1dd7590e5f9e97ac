"""Measure what grammars, penalties and log-probabilities cost on a server that runs.

    python benchmarks/logits_speed.py URL [--within 60] [--out logits_speed]   # writes benchmarks/results/NAME.json

Clients send one request after another, greedily, to a model with nano's tokenizer. JSON ends where it ends. What
penalties and log-probabilities cost is measured on answers of 192 tokens, which go on behind their end, so that most of
the time is decoding; the penalties are so small that the answers stay the same. What grammars cost those beside them is
measured with short answers, where most of the time is prefill and admission of the next request, and with longer ones.
"""

from __future__ import annotations

import argparse
import json
import threading
from typing import Any

import report
from prompts import long_prompts, task_prompts

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
WITH_SCHEMA = {"sampling_params": {"json_schema": json.dumps(SCHEMA)}}
WITH_PATTERN = {"sampling_params": {"regex": "[ -~\\n]+"}}
"""Which permits what the model answers anyway: a step computes the same with it and without, but for the grammar."""
LONG = {"ignore_eos": True, "max_new_tokens": 192}
PENALTIES = {"frequency_penalty": 1e-4, "presence_penalty": 1e-4, "min_new_tokens": 2}
ASKED: dict[str, dict[str, Any]] = {
    "nothing": {"sampling_params": LONG},
    "penalties": {"sampling_params": LONG | PENALTIES},
    "logprobs": {"sampling_params": LONG, "return_logprob": True},
    "top logprobs": {"sampling_params": LONG, "return_logprob": True, "top_logprobs_num": 5},
}
CONCURRENCIES = (1, 8)
AUTOREGRESSIVE, SELF_SPECULATION = {"mode": "autoregressive"}, {"mode": "self_speculation"}
TURNS = 3
WARM_UP, FIRST = 0.4, 0.3
"""Seconds of each turn before it counts, and of a first one that does not."""
ENDING = 0.3
"""Seconds until the answers that were asked for last are over."""
CELLS = 2 + len(ASKED) * len(CONCURRENCIES) + 2 * 2


def in_turns(
    measured: dict[str, tuple[Clients, dict[str, Any]]], concurrency: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """Return the figures of each of `measured`: clients, and how their requests decode. A turn takes `seconds`."""
    cells = {name: Cell() for name in measured}
    for clients, options in measured.values():
        clients.measure(Cell(), options, concurrency, FIRST, 0.0)
    for _ in range(TURNS):
        for name, (clients, options) in measured.items():
            clients.measure(cells[name], options, concurrency, seconds, WARM_UP)
    return {name: cell.summary() for name, cell in cells.items()}


def grammars_beside(url: str, prompts: list[list[int]], request: dict[str, Any], seconds: float) -> dict[str, float]:
    """Return the milliseconds per forward of 12 requests, beside 4 others without and with the grammar `request`."""
    plain, constrained = Clients(url, prompts), Clients(url, prompts, request)
    found: dict[str, float] = {}
    cells = {"none": Cell(), "4 of 16": Cell()}
    for _ in range(TURNS):
        for name, four in (("none", plain), ("4 of 16", constrained)):
            beside = threading.Thread(
                target=four.measure, args=(Cell(), SELF_SPECULATION, 4, seconds, WARM_UP), daemon=True
            )
            beside.start()
            plain.measure(cells[name], SELF_SPECULATION, 12, seconds, WARM_UP)
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
    parser.add_argument("--within", type=float, default=60.0, metavar="SECONDS", help="for all figures together")
    parser.add_argument("--out", default="logits_speed", metavar="NAME", help="of the file")
    options = parser.parse_args()
    seconds = (options.within / CELLS - FIRST) / TURNS - WARM_UP - ENDING
    extraction, prompts = task_prompts(["json"]), long_prompts()
    json_answers = in_turns(
        {
            "autoregressive": (Clients(options.url, extraction, WITH_SCHEMA), AUTOREGRESSIVE),
            "self_speculation": (Clients(options.url, extraction, WITH_SCHEMA), SELF_SPECULATION),
        },
        1,
        seconds,
    )
    asked = {
        str(concurrency): in_turns(
            {name: (Clients(options.url, prompts, request), SELF_SPECULATION) for name, request in ASKED.items()},
            concurrency,
            seconds,
        )
        for concurrency in CONCURRENCIES
    }
    beside = {
        "short answers by a schema": grammars_beside(options.url, extraction, WITH_SCHEMA, seconds),
        "answers of some 110 tokens by a pattern": grammars_beside(options.url, prompts, WITH_PATTERN, seconds),
    }
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
    for name, ms in beside.items():
        print(f"12 requests beside 4, {name}: {ms['4 of 16'] / ms['none']:.3f} of the time per forward; {ms}")
    figures = {"json": json_answers, "asked": asked, "over_nothing_asked": over_nothing_asked}
    report.write(options.out, {**figures, "ms_per_forward_beside": beside}, "sglang", "torch", "xgrammar")


if __name__ == "__main__":
    main()
