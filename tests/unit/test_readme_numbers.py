"""The figures of the README and of the bundled model's card are those that were measured."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dlm_serve import bundled

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
COLUMNS = ("exact match", "forward passes", "tokens per forward", "acceptance length", "equal to `autoregressive`")
HEAD = f"| mode | {' | '.join(COLUMNS)} |\n|---|---|---|---|---|---|"


def results(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((RESULTS / name).read_text())["results"]
    return found


def label(result: dict[str, Any]) -> str:
    mode: str = result["mode"]
    return mode if result["threshold"] is None else f"{mode}, threshold {result['threshold']}"


def row(result: dict[str, Any], note: str = "") -> str:
    figures = result["figures"]
    length = figures["acceptance_length"]
    cells = [
        label(result) + note,
        f"{figures['accuracy']:.1%}",
        f"{figures['forward_passes']:.1f}",
        f"{figures['tokens_per_forward']:.2f}",
        "" if length is None else f"{length:.1f}",
        f"{result['equal_to_autoregressive']} of {figures['answers']}",
    ]
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("page", [ROOT / "README.md", bundled.FOLDER / "README.md"], ids=["readme", "card"])
def test_modes(page: Path) -> None:
    rows = [row(result) for result in results("nano_eval.json")]
    _, speculative = results("nano_eval_without_adapter.json")
    rows.append(row(speculative, note=", no adapter"))
    assert "\n".join([HEAD, *rows]) in page.read_text()


def test_tasks() -> None:
    measured = results("nano_eval.json")
    lines = [f"| exact match | {' | '.join(map(label, measured))} |", "|---" * (len(measured) + 1) + "|"]
    for task in measured[0]["tasks"]:
        cells = [task, *(f"{result['tasks'][task]['accuracy']:.1%}" for result in measured)]
        lines.append(f"| {' | '.join(cells)} |")
    assert "\n".join(lines) in (bundled.FOLDER / "README.md").read_text()


def test_higher_threshold() -> None:
    [result] = results("nano_eval_threshold_0.95.json")
    figures = result["figures"]
    seen = f"{figures['accuracy']:.1%} with {figures['tokens_per_forward']:.2f} tokens per forward"
    assert f"At threshold {result['threshold']} it is {seen}" in (bundled.FOLDER / "README.md").read_text()


@pytest.mark.parametrize("name", ["decode_speed", "release_shapes"])
def test_step_times(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])  # the script extends it
    figures = json.loads((RESULTS / f"{name}.json").read_text())
    assert importlib.import_module(name).table(figures) in (ROOT / "README.md").read_text()


def test_second_forward() -> None:
    """What misses its aim."""
    ratios = json.loads((RESULTS / "decode_speed.json").read_text())["ratios"]
    ratio = ratios["127 autoregressive beside one self-speculation / without, 128"]
    assert f"At 128 tokens of context the fourth row is {ratio:.2f}, " in (ROOT / "README.md").read_text()


def test_ablation() -> None:
    rows = json.loads((RESULTS / "nano_ablation.json").read_text())["rows"]
    for row in rows:
        cells = [
            row["masking"],
            f"{row['ar_loss_weight']}, {row['dlm_loss_weight']}",
            f"{row['steps']:,}",
            f"{row['kl_nats_per_token']:.4f}",
            f"{row['autoregressive']['exact_match']:.1%}",
            f"{row['diffusion']['exact_match']:.1%}",
            f"{row['diffusion']['tokens_per_forward']:.2f}",
            f"{row['self_speculation']['acceptance_length']:.1f}",
        ]
        assert f"| {' | '.join(cells)} |" in (bundled.FOLDER / "README.md").read_text()


def test_block_attention() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for shape, row in json.loads((RESULTS / "block_attention.json").read_text())["batch x prefix x width"].items():
        share, other = f"{row['share']:.0%}", f"{row['flash_attention_3_us']:.1f} us"
        assert f"| {shape} | {row['us']:.1f} us | {share} | {other} |" in page


def test_prefill_agreement() -> None:
    measured = json.loads((RESULTS / "prefill_agreement.json").read_text())
    same, longer = measured["same to longer prompts"], measured["answers to longer prompts"]
    page = (ROOT / "README.md").read_text()
    assert f"{same} of the {longer} answers to prompts longer than a block stay the same" in page
    changed_shorter = measured["answers"] - longer - (measured["same"] - same)
    assert changed_shorter == 0, "the README says: those to shorter ones do not change"


def test_bf16_agreement() -> None:
    cpu, gpu = (
        json.loads((RESULTS / f"bf16_agreement_{machine}.json").read_text())["checkpoints"].values()
        for machine in ("cpu", "gpu")
    )
    answers, on_cpu = (sum(part[name] for part in cpu) for name in ("answers", "same"))
    on_gpu = sum(part["same"] for part in gpu)
    seen = f"{on_cpu:,} of the {answers:,} recorded answers stay the same on a CPU, {on_gpu:,} on an H200"
    assert seen in (ROOT / "README.md").read_text()
