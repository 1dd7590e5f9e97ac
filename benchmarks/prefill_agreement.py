"""Count how often Efficient-DLM answers the same when prompts are encoded block by block instead of as a whole.

    python benchmarks/prefill_agreement.py     # prints a summary, writes benchmarks/results/prefill_agreement.json

Runs on a CPU, over the reference's recorded answers with the tests' checkpoints.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

import report  # noqa: E402
from golden import DATA, EFFICIENT_DLM  # noqa: E402
from serving import Server  # noqa: E402


def measure(model: Path, block_size: int) -> dict[str, int]:
    """Count answers and those that stay the same, for all prompts and for prompts longer than a block."""
    reference = EFFICIENT_DLM.cases(model)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "server.yaml")
        file.write_text("generation: {prefill: block_causal}\n")
        with Server.launch(model, "--dllm-algorithm-config", str(file), log=Path(folder, "log")) as server:
            answers = EFFICIENT_DLM.ask(server, reference)
    same = [answer["output_ids"] == case["output_ids"] for case, answer in zip(reference, answers, strict=True)]
    is_long = [len(case["prompt_ids"]) > block_size for case in reference]
    return {
        "answers": len(same),
        "same": sum(same),
        "answers to longer prompts": sum(is_long),
        "same to longer prompts": sum(s and long for s, long in zip(same, is_long, strict=True)),
    }


def main() -> None:
    folder = DATA / "efficient_dlm"
    parts = [measure(folder / "edlm-b8", 8), measure(folder / "edlm-b32", 32)]
    total = {name: sum(part[name] for part in parts) for name in parts[0]}
    print(total)
    report.write("prefill_agreement", total, "sglang", "torch")


if __name__ == "__main__":
    main()
