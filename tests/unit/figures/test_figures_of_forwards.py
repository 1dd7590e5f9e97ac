"""Compare the figures of steps and kernels with those that were measured."""

from __future__ import annotations

import importlib
import re
import statistics
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


def test_two_gpus() -> None:
    page, steps = (ROOT / "docs" / "parallel.md").read_text(), measured("tensor_parallel_steps")["steps"]
    speed_up = {name.removeprefix("tp 2, "): ratio for name, ratio in steps["speed-up"].items()}
    for name, ratio in speed_up.items():
        ms = [statistics.median(steps["measured"][f"tp {ranks}, {name}"]) for ranks in (1, 2)]
        assert f"| {name} | {ms[0]:.2f} ms | {ms[1]:.2f} ms | {ratio:.2f} |" in page
    for place in (PERFORMANCE, ROOT / "docs" / "deployment.md"):
        assert f"{min(speed_up.values()):.1f} to {max(speed_up.values()):.2f} times as fast" in place.read_text()
    starts = measured("tensor_parallel_starts")["starts"]
    seconds = (each["seconds to start"] for each in starts.values())
    assert "ready after {:.0f} and {:.0f} seconds".format(*seconds) in page
    times = [
        statistics.median(each["step ms, batch 1"][f"{name}, tp 2, {mode}"])
        for mode in ("autoregressive", "diffusion")
        for name, each in starts.items()
    ]
    assert "takes {:.2f} and {:.2f} ms autoregressively, {:.2f} and {:.2f} ms over a block".format(*times) in page


def test_answers_of_two_gpus() -> None:
    page, found = (ROOT / "docs" / "parallel.md").read_text(), measured("tensor_parallel_answers")["answers"]
    plain, adapted = "nld-trained-b8", "nld-trained-b32-lora"
    one, two = ({name: found[f"{name}, tp {ranks}"] for name in (plain, adapted)} for ranks in (1, 2))
    seen = f"{one[plain]['same']} of {one[plain]['answers']} stay the same on one GPU and {two[plain]['same']} on two"
    assert f"{seen}, {one[adapted]['same']} and {two[adapted]['same']} of {one[adapted]['answers']} with" in page
    assert all(each["whole samples"] == 96 for each in found.values())
    on_cpu = measured("bf16_agreement_cpu")["checkpoints"], measured("tensor_parallel_answers_cpu")["answers"]
    one_rank, two_ranks = on_cpu[0][adapted]["same"], on_cpu[1][f"{adapted}, tp 2"]["same"]
    assert f"On a CPU it is {one_rank} on one rank and {two_ranks} on two" in page
