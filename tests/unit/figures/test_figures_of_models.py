"""Compare the figures of families, formats of weights, and vLLM with those that were measured."""

from __future__ import annotations

import json

import pytest
from figures import MODELS, PERFORMANCE, ROOT, measured


@pytest.mark.parametrize("run", ["quantised_nano", "quantised_nano_formats"])
def test_quantised_nano(run: str) -> None:
    for name, by_mode in measured(run)["formats"].items():
        speculative = by_mode["self_speculation"]
        cells = [f"{by_mode[mode]['exact_match']:.1%}" for mode in ("autoregressive", "diffusion", "self_speculation")]
        alike = f"{speculative['as_autoregressive']} of {speculative['answers']}"
        row = f"| {name} | {' | '.join(cells)} | {alike} | {speculative['tokens_per_forward']:.2f} |"
        assert row in MODELS.read_text()


def test_prefill_agreement() -> None:
    found, page = measured("prefill_agreement"), MODELS.read_text()
    same, longer = found["same to longer prompts"], found["answers to longer prompts"]
    assert f"{same} of the {longer} answers to prompts longer than a block stay the same" in page
    changed_shorter = found["answers"] - longer - (found["same"] - same)
    assert changed_shorter == 0, "docs/models.md says: those to shorter ones do not change"


def test_bf16_agreement() -> None:
    cpu, gpu = (measured(f"bf16_agreement_{machine}")["checkpoints"].values() for machine in ("cpu", "gpu"))
    answers, on_cpu = (sum(part[name] for part in cpu) for name in ("answers", "same"))
    on_gpu = sum(part["same"] for part in gpu)
    seen = f"{on_cpu:,} of the {answers:,} recorded answers stay the same on a CPU, {on_gpu:,} on an H200"
    assert seen in PERFORMANCE.read_text()


@pytest.mark.parametrize(
    ("cases", "family"),
    [("nld", "Nemotron-Labs-Diffusion"), ("efficient_dlm/", "Efficient-DLM"), ("sdlm/", "SDLM"), ("bd3lm/", "BD3-LM")],
)
def test_recorded_answers(cases: str, family: str) -> None:
    """The number of answers of a family's reference that are recorded, and that its tests compare with."""
    folder = ROOT / "tests" / "data"
    file = folder / (f"{cases}cases.json" if cases.endswith("/") else f"{cases}_cases.json")
    number = len(json.loads(file.read_text()))
    assert f"| {family} | {number} answers " in MODELS.read_text()


def test_vllm_speed() -> None:
    page, found = (ROOT / "docs" / "vllm.md").read_text(), measured("vllm_speed")
    few, many = (found["forward"][number] for number in ("1", "32"))
    assert f"| stock vLLM | {few['stock']['forward_ms']:.2f} ms | {many['stock']['forward_ms']:.2f} ms |" in page
    alone, crowd = (found["autoregressive"][number]["ours_over_stock"] for number in ("1", "32"))
    ms_alone, ms_crowd = (f"{each['autoregressive']['forward_ms']:.2f} ms" for each in (few, many))
    assert f"| `autoregressive` | {ms_alone}, {alone} of its speed | {ms_crowd}, {crowd} |" in page
    steps = [
        [(f"{each[mode]['forward_ms']:.2f} ms", f"{each['over_autoregressive'][mode]:.2f}") for each in (few, many)]
        for mode in ("self_speculation", "diffusion")
    ]
    (a, b), (c, d) = steps
    assert f"| `self_speculation` | {a[0]}, {a[1]} of a step | {b[0]}, {b[1]} |" in page
    assert f"| `diffusion`, threshold 0.9 | {c[0]}, {c[1]} | {d[0]}, {d[1]} |" in page
    for number in ("1", "32"):
        speeds = (f"{mode['tokens_per_s']:,.0f}" for mode in found["tasks"][number].values())
        assert "{}, {} and {}".format(*speeds) in page
    times = few["self_speculation"]["all"]
    assert f"took between {min(times):.2f} and {max(times):.2f} ms" in page


def test_vllm_agreement() -> None:
    page = (ROOT / "docs" / "vllm.md").read_text()
    ours, theirs = (measured(name)["checkpoints"] for name in ("vllm_agreement", "bf16_agreement_gpu"))
    plain, adapted = ours.values()
    assert f"{plain['same']} of {plain['answers']} recorded answers keep their tokens" in page
    assert f"and {adapted['same']} of {adapted['answers']} with an adapter" in page
    assert "on SGLang {} and {}".format(*(theirs[name]["same"] for name in ours)) in page
    divided = measured("vllm_agreement_tp2")["checkpoints"].values()
    assert "on two GPUs, it is {} and {}".format(*(each["same"] for each in divided)) in page
