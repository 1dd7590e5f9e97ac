"""Compare the figures of nano's answers with those that were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from figures import CARD, PERFORMANCE, README, measured

COLUMNS = ("exact match", "forward passes", "tokens per forward", "acceptance length", "equal to `autoregressive`")
HEAD = f"| mode | {' | '.join(COLUMNS)} |\n|---|---|---|---|---|---|"


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


def results(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = measured(name)["results"]
    return found


@pytest.mark.parametrize("page", [PERFORMANCE, CARD], ids=["performance", "card"])
def test_modes(page: Path) -> None:
    rows = [row(result) for result in results("nano_eval")]
    _, speculative = results("nano_eval_without_adapter")
    rows.append(row(speculative, note=", no adapter"))
    assert "\n".join([HEAD, *rows]) in page.read_text()


def test_readme() -> None:
    """What the README says of nano and of a block's cost in one sentence each."""
    page = README.read_text()
    autoregressive, speculative = (
        next(result for result in results("nano_eval") if result["mode"] == mode)
        for mode in ("autoregressive", "self_speculation")
    )
    alone, drafted = autoregressive["figures"], speculative["figures"]
    assert (
        f"Over {alone['answers']} held-out questions, nano takes {alone['forward_passes']:.1f} forward passes "
        f"per answer autoregressively and {drafted['forward_passes']:.1f} by self-speculation, with the same tokens in "
        f"{speculative['equal_to_autoregressive']} of {drafted['answers']}."
    ) in page
    ratio = measured("decode_speed")["ratios"]["block step of width 32 / autoregressive step, batch 1"]
    assert f"a forward pass over a block of 32 tokens costs {ratio:.2f} of one over a single token" in page
    drafting = measured("one_forward_steps")["cells"]["server"]["steps"]["linear 32"]["ratio"]
    assert f"{drafting:.2f} with a draft adapter" in page


def test_tasks() -> None:
    evaluated = results("nano_eval")
    lines = [f"| exact match | {' | '.join(map(label, evaluated))} |", "|---" * (len(evaluated) + 1) + "|"]
    for task in evaluated[0]["tasks"]:
        cells = [task, *(f"{result['tasks'][task]['accuracy']:.1%}" for result in evaluated)]
        lines.append(f"| {' | '.join(cells)} |")
    assert "\n".join(lines) in CARD.read_text()


def test_higher_threshold() -> None:
    [result] = results("nano_eval_threshold_0.95")
    figures = result["figures"]
    seen = f"{figures['accuracy']:.1%} with {figures['tokens_per_forward']:.2f} tokens per forward"
    assert f"At threshold {result['threshold']} it is {seen}" in CARD.read_text()


def test_ablation() -> None:
    for row in measured("nano_ablation")["rows"]:
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
        assert f"| {' | '.join(cells)} |" in CARD.read_text()
