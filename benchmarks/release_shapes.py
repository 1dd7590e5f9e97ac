"""Measure step times of the other families on a GPU, at the shapes of their releases.

    python benchmarks/release_shapes.py     # prints a table, writes benchmarks/results/release_shapes.json

Servers run on random weights with default flags, so this measures what a release of that shape gets by default. Each
step of these requests fixes one token of each row.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import decode_speed  # puts tests/support on the path
import report
from golden import DATA
from sdar import RELEASED_AS as SDAR
from serving import Server

CONTEXT = 1024
BATCHES = (1, 8)
FLAGS = ("--load-format", "dummy")
QWEN3_8B = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32}
QWEN3 = {"num_key_value_heads": 8, "vocab_size": 151936, "mask_token_id": 151662, "block_size": 32}
QWEN2 = {"vocab_size": 151666, "text_mask_token_id": 151665}


@dataclass(frozen=True)
class Release:
    """The shape of a release."""

    like: str
    """The tests' checkpoint whose configuration and tokenizer it uses."""
    sizes: dict[str, Any]
    """Fields of `config.json` that differ from it."""
    diffusion: dict[str, Any]
    """Options with which each forward fixes one token."""
    is_autoregressive: bool = False
    """Whether it has a mode `autoregressive` to compare with."""

    @property
    def config(self) -> dict[str, Any]:
        """Return its `config.json`."""
        config: dict[str, Any] = json.loads((DATA / self.like / "config.json").read_text())
        return {**config, **self.sizes, "torch_dtype": "bfloat16"}

    def write(self, folder: Path) -> Path:
        """Create a folder without weights."""
        shutil.copytree(DATA / self.like, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        (folder / "config.json").write_text(json.dumps(self.config))
        return folder


EFFICIENT_DLM_8B = Release("efficient_dlm/edlm-b32", {**QWEN3, **QWEN3_8B}, {"threshold": None})
RELEASES = {
    "Efficient-DLM-8B": EFFICIENT_DLM_8B,
    "SDLM-3B-D4": Release(
        "sdlm/sdlm-d4-tied",
        {
            **QWEN2,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
        },
        {"threshold": 1.0},
        is_autoregressive=True,
    ),
    "SDLM-32B-D4": Release(
        "sdlm/sdlm-d4-tied",
        {
            **QWEN2,
            "hidden_size": 5120,
            "intermediate_size": 27648,
            "num_hidden_layers": 64,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "tie_word_embeddings": False,
        },
        {"threshold": 1.0},
        is_autoregressive=True,
    ),
    "bd3lm-owt-block_size4": Release(
        "bd3lm/bd3lm-b4",
        {
            "hidden_dim": 768,
            "n_blocks": 12,
            "n_heads": 12,
            "cond_dim": 128,
            "vocab_size": 50258,
            "model_length": 1024,
        },
        {"algorithm": "first_hitting"},
    ),
    "SDAR-8B-Chat": Release(
        EFFICIENT_DLM_8B.like,
        {**EFFICIENT_DLM_8B.sizes, **SDAR, "mask_token_id": 151669, "block_size": 4, "eos_token_id": 151645},
        {"threshold": None},
    ),
}
"""Sizes from the releases' `config.json`; SDLM's from the Qwen2.5 models that it was made from."""


def measure(name: str, model: Path, release: Release, log: Path) -> dict[str, list[float]]:
    """Return milliseconds per forward by mode and batch."""
    modes = {"diffusion": {"mode": "diffusion", **release.diffusion}}
    if release.is_autoregressive:
        modes["autoregressive"] = {"mode": "autoregressive"}
    results: dict[str, list[float]] = {}
    with Server.launch(model, *FLAGS, log=log) as server:
        for mode, dlm in modes.items():
            for batch in BATCHES:
                action = partial(decode_speed.step_ms, server, batch, CONTEXT, dlm)
                decode_speed.measure(f"{name} {mode} step ms, batch {batch}", action, results)
        server.assert_nothing_leaked()
    return results


def table(figures: dict[str, Any]) -> str:
    """Return the figures as docs/performance.md shows them."""
    ms = {name: f"{statistics.median(values):.1f}" for name, values in figures["measured"].items()}

    def cells(name: str, mode: str) -> str:
        return ", ".join(ms[f"{name} {mode} step ms, batch {batch}"] for batch in BATCHES)

    rows = []
    for name, release in RELEASES.items():
        plain = cells(name, "autoregressive") if release.is_autoregressive else "none"
        rows.append(f"| {name} | {release.config['block_size']} | {cells(name, 'diffusion')} | {plain} |")
    head = "| shape | block | `diffusion`, ms per step at batch 1, 8 | `autoregressive` |"
    return "\n".join([head, "|---|---|---|---|", *rows])


def main() -> None:
    results: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        logs = Path(os.environ.get("OUT", temporary))
        for name, release in RELEASES.items():
            results |= measure(name, release.write(Path(temporary) / name), release, logs / f"{name}.log")
    report.write("release_shapes", {"context": CONTEXT, "measured": results}, "sglang", "torch", "triton")


if __name__ == "__main__":
    main()
