"""Count how many of the families' recorded answers stay the same in bfloat16, the type that GPUs serve.

    python benchmarks/bf16_agreement.py     # prints a table, writes benchmarks/results/bf16_agreement_{cpu,gpu}.json

The references ran in float32, where all answers are the same. In bfloat16 rounding flips near-ties, and whatever
follows differs. A GPU should keep about as many answers as a CPU does.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

import report  # noqa: E402
import torch  # noqa: E402
from golden import (  # noqa: E402
    BD3LM,
    DATA,
    EFFICIENT_DLM,
    NEMOTRON_LABS_DIFFUSION,
    SDLM,
    Answer,
    Case,
    Golden,
    by_adapter,
)
from serving import Server  # noqa: E402

CHECKPOINTS: dict[str, Golden] = {
    "nld-trained-b8": NEMOTRON_LABS_DIFFUSION,
    "nld-trained-b32-lora": NEMOTRON_LABS_DIFFUSION,
    "efficient_dlm/edlm-b8": EFFICIENT_DLM,
    "efficient_dlm/edlm-b32": EFFICIENT_DLM,
    "sdlm/sdlm-d4-tied": SDLM,
    "sdlm/sdlm-d8-untied": SDLM,
    "bd3lm/bd3lm-b4": BD3LM,
    "bd3lm/bd3lm-b8": BD3LM,
}
FLAGS = ("--dtype", "bfloat16", "--disable-prefill-cuda-graph", "--max-total-tokens", "65536")


def num_agreeing(theirs: list[int], ours: list[int]) -> int:
    """Return the number of tokens before the first difference."""
    parted = (i for i, pair in enumerate(zip(theirs, ours, strict=False)) if pair[0] != pair[1])
    return next(parted, min(len(theirs), len(ours)))


def compare(golden: Golden, cases: list[Case], answers: list[Answer]) -> dict[str, int]:
    """Count `answers` to `cases`, those that are the reference's, and their tokens before the first difference."""
    pairs = [(golden.expected_ids(case), answer["output_ids"]) for case, answer in zip(cases, answers, strict=True)]
    return {
        "answers": len(pairs),
        "same": sum(theirs == ours for theirs, ours in pairs),
        "tokens": sum(len(theirs) for theirs, _ in pairs),
        "tokens before the first difference": sum(num_agreeing(*pair) for pair in pairs),
    }


def measure(name: str, golden: Golden, logs: Path) -> dict[str, int]:
    """Compare the answers of one checkpoint with its reference's."""
    model = DATA / name
    cases = by_adapter(golden.cases(model), adapter="lora" in name)
    with Server.launch(model, *FLAGS, log=logs / f"{model.name}.log") as server:
        answers = golden.ask(server, cases)
        server.assert_nothing_leaked()
    return compare(golden, cases, answers)


def main() -> None:
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, golden in CHECKPOINTS.items():
            results[name] = measure(name, golden, Path(os.environ.get("OUT", temporary)))
            print(f"{name:24} {' '.join(f'{key}: {value}' for key, value in results[name].items())}", flush=True)
    machine = "gpu" if torch.cuda.is_available() else "cpu"
    report.write(f"bf16_agreement_{machine}", {"checkpoints": results}, "sglang", "torch")


if __name__ == "__main__":
    main()
