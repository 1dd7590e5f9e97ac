"""Measure Nemotron-Labs-Diffusion on vLLM beside a model of the same shape that vLLM has itself.

    python benchmarks/vllm_speed.py --stock DIR --like MODEL     # write DIR, a Mistral of the shape of MODEL
    vllm serve DIR --load-format dummy --port 8002               # and MODEL on port 8001, with the same flags
    python benchmarks/vllm_speed.py http://127.0.0.1:8001 http://127.0.0.1:8002 [--out NAME]

| part | what |
|---|---|
| `autoregressive` | output tokens per second of both servers in turns, and their ratio: what the plugin costs |
| `forward` | milliseconds per forward of self-speculation and of diffusion, over those of autoregression |
| `tasks` | output tokens per second in each mode, with prompts that the bundled model was trained for |

Times per token and per forward are differences between long and short answers to the same prompt, so that prompts and
HTTP cancel out. A forward over drafts of one mode and one over those that it verifies count alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import report
from prompts import task_prompts

CONCURRENCIES = (1, 32)
MODES = ("autoregressive", "self_speculation", "diffusion")
SHORT, LONG = 16, 144
"""Tokens of answers that are compared; all are decoded to their ends."""
REPEATS = 5
TASK_TOKENS = 256
TASK_SECONDS = 4.0
TIMEOUT = 60.0
"""Seconds that an answer may take."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")

Answer = dict[str, Any]
Figures = dict[str, Any]


def write_stock(folder: Path, model: Path) -> None:
    """Write the configuration of a Mistral with the sizes and the tokenizer of `model`, for dummy weights."""
    config = json.loads((model / "config.json").read_text())
    for name in ("auto_map", "mask_token_id", "block_size", "dlm_paradigm"):
        config.pop(name, None)
    rope = config["rope_parameters"]
    if "llama_4_scaling_beta" in rope:  # the same work at each query; vLLM reads it elsewhere
        period = rope["original_max_position_embeddings"]
        beta = rope.pop("llama_4_scaling_beta")
        config["llama_4_scaling"] = {"original_max_position_embeddings": period, "beta": beta}
    config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "torch_dtype": "bfloat16"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for name in TOKENIZER_FILES:
        if (model / name).exists():
            (folder / name).write_bytes((model / name).read_bytes())


class Server:
    """A server of `vllm serve`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._name = self._call("/v1/models")["data"][0]["id"]

    def ask(self, prompt: Sequence[int], num_tokens: int, mode: str | None, *, to_the_end: bool = True) -> Answer:
        """Return the answer to a prompt, greedily; of `num_tokens` tokens, `to_the_end`, or up to so many."""
        body = {
            "model": self._name,
            "prompt": list(prompt),
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": to_the_end,
            **({"vllm_xargs": {"mode": mode}} if mode else {}),
        }
        answer: Answer = self._call("/v1/completions", body)
        return answer

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urlopen(Request(self._url + path, data, {"Content-Type": "application/json"}), timeout=TIMEOUT) as answer:
            return json.load(answer)


def num_forwards(answer: Answer) -> int:
    """Return the forwards behind the prompt's: those that the server reports, else one for each token but the first."""
    reported = ((answer.get("metrics") or {}).get("speculative_decoding") or {}).get("num_spec_steps")
    return int(reported) if reported else int(answer["usage"]["completion_tokens"]) - 1


def crowd(ask: Callable[[], Answer], concurrency: int) -> tuple[float, list[Answer]]:
    """Return the seconds that `concurrency` requests take that are sent at once, and their answers."""
    with ThreadPoolExecutor(concurrency) as pool:
        start = time.perf_counter()
        answers = [future.result() for future in [pool.submit(ask) for _ in range(concurrency)]]
        return time.perf_counter() - start, answers


def forward_ms(server: Server, prompt: Sequence[int], concurrency: int, mode: str | None) -> float:
    """Return milliseconds per forward: by how much longer answers take, over how many more forwards they are."""
    points = []
    for num_tokens in (SHORT, LONG):
        seconds, answers = crowd(lambda n=num_tokens: server.ask(prompt, n, mode), concurrency)  # type: ignore[misc]
        points.append((seconds, max(map(num_forwards, answers))))
    (short_seconds, few), (long_seconds, many) = points
    if many == few:
        raise SystemExit(f"{mode}: {LONG} tokens took no more forwards than {SHORT}")
    return (long_seconds - short_seconds) / (many - few) * 1e3


def compare(ways: dict[str, tuple[Server, str | None]], prompt: Sequence[int], concurrency: int) -> dict[str, Figures]:
    """Return milliseconds per forward of each way, a server and a mode: all in turns, once more than counts."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS + 1):
        for name, (server, mode) in ways.items():
            times[name].append(forward_ms(server, prompt, concurrency, mode))
    return {
        name: {"forward_ms": round(statistics.median(found[1:]), 3), "all": [round(each, 3) for each in found[1:]]}
        for name, found in times.items()
    }


def task_speed(server: Server, prompts: Sequence[list[int]], concurrency: int, mode: str) -> Figures:
    """Return output tokens per second of clients that ask tasks one after another, and tokens per forward."""
    end = time.perf_counter() + TASK_SECONDS

    def client(number: int) -> list[Answer]:
        answers: list[Answer] = []
        while time.perf_counter() < end:
            prompt = prompts[(number + len(answers) * concurrency) % len(prompts)]
            answers.append(server.ask(prompt, TASK_TOKENS, mode, to_the_end=False))
        return answers

    start = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        answers = [answer for found in pool.map(client, range(concurrency)) for answer in found]
    tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
    behind_prompts = tokens - len(answers)
    return {
        "tokens_per_s": round(tokens / (time.perf_counter() - start), 1),
        "tokens_per_forward": round(behind_prompts / max(sum(map(num_forwards, answers)), 1), 2),
        "answers": len(answers),
    }


def measure(ours: Server, stock: Server) -> Iterator[Figures]:
    """Print the figures of all parts; yield all that there are, each time that there are more."""
    prompts = task_prompts()
    ways = {"stock": (stock, None), **{mode: (ours, mode) for mode in MODES}}
    found: Figures = {"autoregressive": {}, "forward": {}, "tasks": {}}
    for concurrency in CONCURRENCIES:
        times = compare(ways, prompts[0], concurrency)
        speeds = {name: 1e3 * concurrency / times[name]["forward_ms"] for name in ("stock", "autoregressive")}
        ratio = round(speeds["autoregressive"] / speeds["stock"], 3)
        found["autoregressive"][concurrency] = {
            "ours_tokens_per_s": round(speeds["autoregressive"], 1),
            "stock_tokens_per_s": round(speeds["stock"], 1),
            "ours_over_stock": ratio,
        }
        over = {mode: round(times[mode]["forward_ms"] / times["autoregressive"]["forward_ms"], 3) for mode in MODES[1:]}
        found["forward"][concurrency] = {**times, "over_autoregressive": over}
        print(f"{concurrency:3d} requests: {found['autoregressive'][concurrency]}, forwards {over}", flush=True)
        yield found
    for concurrency in CONCURRENCIES:
        for mode in MODES:
            figures = task_speed(ours, prompts, concurrency, mode)
            found["tasks"].setdefault(concurrency, {})[mode] = figures
            print(f"{concurrency:3d} requests, tasks, {mode}: {figures}", flush=True)
            yield found


def main() -> None:
    """Write the configuration of a stock model, or measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("urls", nargs="*", metavar="URL", help="of our server and of the stock model's")
    parser.add_argument("--stock", type=Path, metavar="DIR", help="write the stock model's configuration here")
    parser.add_argument("--like", type=Path, metavar="MODEL", help="a folder with a model of that shape")
    parser.add_argument("--out", default="vllm_speed", help="name of the file in benchmarks/results")
    options = parser.parse_args()
    if options.stock:
        write_stock(options.stock, options.like)
    if options.urls:
        ours, stock = map(Server, options.urls)
        for figures in measure(ours, stock):
            report.write(options.out, figures, "vllm", "torch", "triton")


if __name__ == "__main__":
    main()
