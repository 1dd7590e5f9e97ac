"""Compare the figures of steps and kernels with those that were measured."""

from __future__ import annotations

import importlib
import re
import sys

import pytest
from figures import PERFORMANCE, ROOT, measured


@pytest.mark.parametrize("name", ["decode_speed", "release_shapes"])
def test_step_times(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])  # the script extends it
    assert importlib.import_module(name).table(measured(name)) in PERFORMANCE.read_text()


def test_second_forward() -> None:
    """The figure that misses its target."""
    ratio = measured("decode_speed")["ratios"]["127 autoregressive beside one self-speculation / without, 128"]
    assert f"At 128 tokens of context the fourth row is {ratio:.2f}, " in PERFORMANCE.read_text()


def test_block_attention() -> None:
    page = PERFORMANCE.read_text()
    for shape, row in measured("block_attention")["batch x prefix x width"].items():
        share, other = f"{row['share']:.0%}", f"{row['flash_attention_3_us']:.1f} us"
        assert f"| {shape} | {row['us']:.1f} us | {share} | {other} |" in page


def test_block_attention_launches() -> None:
    found = measured("block_attention_launches")
    beside = found["us of the Triton kernel beside the Hopper kernel, by batch x prefix x width"]
    times = [f"{us:.0f}" for us in beside.values()]
    seen = f"The Triton kernel takes {', '.join(times[:-1])} and {times[-1]} us at contexts of 8k, 32k and 128k"
    assert seen in PERFORMANCE.read_text()


@pytest.mark.parametrize("rows", ["1", "32", "256"])
def test_sample_token(rows: str) -> None:
    found = measured("sample_token")
    page = PERFORMANCE.read_text()
    us = found["rows"][rows]["us"]
    assert f"| {rows} | {' | '.join(f'{value:.1f} us' for value in us.values())} |" in page
    share = found["rows"]["256"]["share"]
    assert f"Greedy choice over 256 rows runs at {share:.0%} of copy bandwidth" in page
    over_greedy = [found["rows"]["256"]["us"][way] / found["rows"]["256"]["us"]["greedy"] for way in us]
    assert f"({over_greedy[1]:.1f} and {over_greedy[2]:.1f} times)" in page
    assert f"{found['other logits']['flat']['256']['us']['T 0.7, top-p 0.9']:.1f} us with top-p" in page


def test_sampled_steps() -> None:
    page = PERFORMANCE.read_text()
    for shape, ms in measured("sampling_speed")["blocks"].items():
        ratios = [f"{value / ms['greedy']:.2f}" for way, value in ms.items() if way != "greedy"]
        batch, width = re.findall(r"\d+", shape)
        assert f"{ratios[0]}, {ratios[1]} and {ratios[2]} at batch {batch} and width {width}" in page
    over_plain = [f"{row['ratio']:.2f}" for row in measured("sampling_speed")["autoregressive"].values()]
    assert "{}, {} and {} of the speed of plain SGLang at batch 1, 32 and 127".format(*over_plain) in page


def test_draft_adapter() -> None:
    for tokens, us in measured("draft_adapter")["tokens"].items():
        assert f"| {tokens} | {' | '.join(f'{value:.1f} us' for value in us.values())} |" in PERFORMANCE.read_text()
