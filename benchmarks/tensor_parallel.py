"""Measure tensor parallelism on GPUs: recorded answers, step times at the 8B shape, and starts of larger shapes.

    python benchmarks/tensor_parallel.py [answers] [steps] [starts] [--ranks 1 2]

Each part writes benchmarks/results/tensor_parallel_PART.json, or tensor_parallel_PART_cpu.json without a GPU:

- `answers`: how many of the recorded answers stay the same in bfloat16, which several GPUs should keep as often as one,
  and whether a crowd of samples is answered to its end: ranks that chose otherwise would wait for each other;
- `steps`: milliseconds per forward at the shape of Nemotron-Labs-Diffusion-8B, with random weights;
- `starts`: seconds to start at shapes of 14B and 32B, both at once, with the largest number of ranks, and their steps.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import bf16_agreement  # puts tests/support on the path
import report
import torch
from decode_speed import AUTOREGRESSIVE, FLAGS, fixed_schedule, measure, step_ms, write_model
from golden import NEMOTRON_LABS_DIFFUSION, TRAINED, WITH_ADAPTER, by_adapter
from release_shapes import RELEASES
from serving import Server, generate_body

CHECKPOINTS = (TRAINED, WITH_ADAPTER)
MODES = ("autoregressive", "diffusion", "self_speculation")
NUM_SAMPLES, SAMPLE_TOKENS = 96, 64
CONTEXT = 1024
SHAPE_14B = {"hidden_size": 5120, "intermediate_size": 16384, "num_hidden_layers": 40}
"""Beside the 8B's: Nemotron-Labs-Diffusion-14B."""
SHAPE_32B = RELEASES["SDLM-32B-D4"]

STEPS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "autoregressive, batch 1": (1, AUTOREGRESSIVE, {}),
    "autoregressive, batch 32": (32, AUTOREGRESSIVE, {}),
    "width 32, batch 1": (1, fixed_schedule(32), {}),
    "width 8, batch 8": (8, fixed_schedule(8), {}),
    "width 32, batch 8": (8, fixed_schedule(32), {}),
    "width 8, batch 8, temperature 0.7": (8, fixed_schedule(8), {"temperature": 0.7}),
}
"""Batch, options and sampling."""

UNEVEN = {"SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK": "0"}
"""Servers of one rank and of two share the first GPU, which SGLang takes for a mistake."""
SMALL_POOL = ("--max-total-tokens", "20000")
"""So that both larger shapes fit beside each other."""

Figures = dict[str, Any]


@contextmanager
def serving(models: Mapping[str, tuple[Path, int]], logs: Path, *flags: str) -> Iterator[Iterator[tuple[str, Server]]]:
    """Run servers of models on so many GPUs each, side by side; yield each once it is there, in the order given."""
    with ExitStack() as stack:
        servers = {}
        for name, (model, num_ranks) in models.items():
            servers[name] = Server.launch(model, "--tp", str(num_ranks), *flags, log=logs / f"{name}.log", env=UNEVEN)
            stack.callback(servers[name].stop)
        yield ((name, stack.enter_context(server)) for name, server in servers.items())


def answers(ranks: list[int], folder: Path, logs: Path) -> Figures:
    """Return by checkpoint and number of ranks what `bf16_agreement` counts, and samples of full length."""
    golden, found = NEMOTRON_LABS_DIFFUSION, Figures()
    models = {f"{model.name}, tp {num_ranks}": (model, num_ranks) for model in CHECKPOINTS for num_ranks in ranks}
    with serving(models, logs, *bf16_agreement.FLAGS) as servers:
        for name, server in servers:
            model, _ = models[name]
            cases = by_adapter(golden.cases(model), adapter=model == WITH_ADAPTER)
            counts = bf16_agreement.compare(golden, cases, golden.ask(server, cases))
            sampled = server.generate_all(samples(cases[0]["prompt_ids"]), NUM_SAMPLES)
            server.assert_nothing_leaked()
            counts["whole samples"] = sum(len(answer["output_ids"]) == SAMPLE_TOKENS for answer in sampled)
            found[name] = counts
            print(f"{name}: {counts}", flush=True)
    return found


def samples(prompt: list[int]) -> list[dict[str, Any]]:
    """Return requests of all modes by chance, with and without top-p."""
    return [
        generate_body(
            prompt,
            SAMPLE_TOKENS,
            mode=MODES[seed % len(MODES)],
            ignore_eos=True,
            temperature=1.0,
            top_p=1.0 if seed % 2 else 0.9,
            sampling_seed=seed,
        )
        for seed in range(NUM_SAMPLES)
    ]


def steps(ranks: list[int], folder: Path, logs: Path) -> Figures:
    """Return milliseconds per forward by number of ranks and step, and the speed-up over the first number."""
    model = write_model(folder / "8b", {})
    measured: dict[str, list[float]] = {}
    with serving({f"tp {num_ranks}": (model, num_ranks) for num_ranks in ranks}, logs, *FLAGS) as started:
        servers = dict(started)
        for name, (batch, dlm, sampling) in STEPS.items():
            for ranks_name, server in servers.items():
                action = partial(step_ms, server, batch, CONTEXT, dlm, **sampling)
                measure(f"{ranks_name}, {name}", action, measured)
    medians = {name: statistics.median(values) for name, values in measured.items()}
    ratios = {
        f"tp {num_ranks}, {name}": medians[f"tp {ranks[0]}, {name}"] / medians[f"tp {num_ranks}, {name}"]
        for num_ranks in ranks[1:]
        for name in STEPS
    }
    return {"context": CONTEXT, "measured": measured, "speed-up": ratios}


def starts(ranks: list[int], folder: Path, logs: Path) -> Figures:
    """Return seconds until larger shapes, which start side by side, are there, and their milliseconds per forward."""
    num_ranks, found = max(ranks), Figures()
    shapes = {
        "14b": (write_model(folder / "14b", SHAPE_14B), fixed_schedule(32)),
        "32b": (SHAPE_32B.write(folder / "32b"), {"mode": "diffusion", **SHAPE_32B.diffusion}),
    }
    start = time.perf_counter()
    with serving(
        {name: (model, num_ranks) for name, (model, _) in shapes.items()}, logs, *FLAGS, *SMALL_POOL
    ) as started:
        servers = []
        for name, server in started:
            servers.append((name, server))
            found[name] = {"ranks": num_ranks, "seconds to start": time.perf_counter() - start}
            print(f"{name} started in {found[name]['seconds to start']:.1f} s", flush=True)
        for name, server in servers:
            measured: dict[str, list[float]] = {}
            for mode, options in (("autoregressive", AUTOREGRESSIVE), ("diffusion", shapes[name][1])):
                measure(f"{name}, tp {num_ranks}, {mode}", partial(step_ms, server, 1, CONTEXT, options), measured)
            found[name]["step ms, batch 1"] = measured
    return found


PARTS: dict[str, Callable[[list[int], Path, Path], Figures]] = {"answers": answers, "steps": steps, "starts": starts}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=PARTS, help="all if none is named")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    arguments = parser.parse_args()
    for part in arguments.parts or PARTS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            figures = PARTS[part](arguments.ranks, folder, Path(os.environ.get("OUT", temporary)))
        machine = "" if torch.cuda.is_available() else "_cpu"
        report.write(f"tensor_parallel_{part}{machine}", {part: figures}, "sglang", "torch", "triton")


if __name__ == "__main__":
    main()
