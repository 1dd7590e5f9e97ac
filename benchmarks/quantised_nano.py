"""Quantise nano in several formats, serve each, and compare the answers with those of nano as it is.

    python benchmarks/quantised_nano.py                  # prints a table, writes benchmarks/results/quantised_nano.json
    python benchmarks/quantised_nano.py --formats all --at-once 4    # those that the card or SGLang cannot run say why
    python benchmarks/quantised_nano.py --formats compressed-w4a16 --write FOLDER [--model MODEL]    # writes, no more

Weights are rounded to nearest, all but the head's and those of the first layer's attention, which `config.json` leaves
out under the checkpoint's own names. `--model` is the folder of any checkpoint whose sizes are multiples of 128, such
as one that `dlm-serve inflate` writes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

import report  # noqa: E402
from quantized_checkpoints import left_out_of, write  # noqa: E402
from serving import Server  # noqa: E402
from weight_formats import FORMATS  # noqa: E402

from dlm_serve.bundled import FOLDER as NANO  # noqa: E402
from dlm_serve.client import MODES, Client  # noqa: E402
from dlm_serve.errors import ServerError  # noqa: E402
from dlm_serve.evaluation.report import Plan, evaluate  # noqa: E402
from dlm_serve.models.checkpoint import Checkpoint  # noqa: E402
from dlm_serve.training.tasks import TASKS  # noqa: E402

DEFAULT = ("compressed-fp8", "compressed-w4a16")
UNCHANGED: dict[str, tuple[str, ...]] = {
    "bfloat16": (),
    "float16": ("--dtype", "float16"),
    "bfloat16, FlashInfer": ("--attention-backend", "flashinfer"),
    "fp8, as it is loaded": ("--quantization", "fp8"),
}
"""What is served from the model's own folder, and the flags."""
FLAGS = ("--max-total-tokens", "65536", "--max-running-requests", "16")
"""Of each: little enough memory for several servers on one GPU."""
THRESHOLD, CONCURRENCY = 0.9, 16


def quantise(model: Path, name: str, out: Path) -> Path:
    """Write `model` in a format to the new folder `out`, and return it."""
    checkpoint = Checkpoint.find(str(model))
    if checkpoint is None:
        raise SystemExit(f"{model} is no checkpoint of a family that is served")
    write(model, out, FORMATS[name], left_out_of(checkpoint))
    return out


def measure(server: Server, count: int) -> dict[str, Any]:
    """Return exact match, agreement with autoregression and tokens per forward, by mode."""
    plan = Plan(MODES, (THRESHOLD,), count, seed=0, max_new_tokens=256, concurrency=CONCURRENCY)
    found = evaluate(Client(server.url), TASKS.values(), plan, lambda done, total: None)
    return {
        result.mode: {
            "answers": result.figures.answers,
            "exact_match": result.figures.accuracy,
            "as_autoregressive": result.equal_to_autoregressive,
            "tokens_per_forward": result.figures.tokens_per_forward,
        }
        for result in found.results
    }


def serve(folder: Path, flags: Sequence[str], log: Path, count: int) -> dict[str, Any]:
    """Return what a server of `folder` reaches, or why there is none."""
    try:
        with Server.launch(folder, *FLAGS, *flags, log=log) as server:
            return measure(server, count)
    except (RuntimeError, TimeoutError, ServerError):
        lines = [line for line in log.read_text().splitlines() if "Error" in line]
        return {"failed": lines[-1] if lines else log.read_text()[-200:]}


def row(name: str, found: dict[str, Any]) -> str:
    """Return a line of the table."""
    if "failed" in found:
        return f"| {name} | {found['failed']} |"
    speculative = found["self_speculation"]
    cells = [f"{found[mode]['exact_match']:.1%}" for mode in MODES]
    agreement = f"{speculative['as_autoregressive']} of {speculative['answers']}"
    return f"| {name} | {' | '.join(cells)} | {agreement} | {speculative['tokens_per_forward']:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", choices=[*FORMATS, "all"], default=DEFAULT, metavar="FORMAT")
    parser.add_argument("--model", type=Path, default=NANO, help="(%(default)s)")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="where to write one folder for each format")
    parser.add_argument("--count", type=int, default=64, help="questions per task (%(default)s)")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="servers side by side (%(default)s)")
    args = parser.parse_args()
    formats = list(FORMATS) if "all" in args.formats else args.formats
    if args.write:
        for name in formats:
            print(quantise(args.model, name, args.write / name))
        return
    print(f"| weights | {' | '.join(MODES)} | self_speculation as autoregressive | tokens per forward |")
    figures: dict[str, Any] = {}
    names = [*UNCHANGED, *formats]
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(args.at_once) as pool:
        logs = Path(os.environ.get("OUT", temporary))

        def found(name: str) -> dict[str, Any]:
            folder = args.model if name in UNCHANGED else quantise(args.model, name, Path(temporary) / name)
            return serve(folder, UNCHANGED.get(name, ()), logs / f"quantised {name}.log", args.count)

        for name, result in zip(names, pool.map(found, names), strict=True):
            figures[name] = result
            print(row(name, result), flush=True)
    report.write(
        "quantised_nano", {"threshold": THRESHOLD, "count": args.count, "formats": figures}, "sglang", "torch", "triton"
    )


if __name__ == "__main__":
    main()
