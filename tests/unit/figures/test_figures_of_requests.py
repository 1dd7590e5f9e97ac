"""Compare the figures of what requests ask for, and how they agree and wait with those that were measured."""

from __future__ import annotations

import pytest
from figures import PERFORMANCE, ROOT, largest_gap, measured


def test_logits() -> None:
    page, found = PERFORMANCE.read_text(), measured("logits_speed")
    json_answers = found["json"]
    speed = json_answers["self_speculation"]["tokens_per_s"] / json_answers["autoregressive"]["tokens_per_s"]
    forwards = json_answers["self_speculation"]["tokens_per_forward"]
    assert f"{speed:.2f} times the tokens per second" in page
    assert f"with the same schema, {forwards:.1f} tokens per forward pass" in page
    for number, at in (("1", "at one request"), ("8", "at 8")):
        ratios = [
            f"{found['over_nothing_asked'][number][asked]:.3f}" for asked in ("penalties", "logprobs", "top logprobs")
        ]
        assert "penalties {}, log-probabilities {}, five most likely tokens {}".format(*ratios) + f" {at}" in page
    short, long = (ms["4 of 16"] / ms["none"] for ms in found["ms_per_forward_beside"].values())
    assert (
        f"{short:.2f} where answers are short and follow a schema, {long:.2f} with answers of some 110 tokens" in page
    )


def test_grammar_masks() -> None:
    page, ms = PERFORMANCE.read_text(), measured("grammar_masks")["ms"]
    nano, filled = (
        [f"{ms[grammar][tokens]:.1f}" for grammar in ("pattern", "schema")] for tokens in ("nano", "filled")
    )
    assert "take {} ms for the pattern, and {} ms for the schema".format(*nano) in page
    assert "as releases have, they take {} and {} ms".format(*filled) in page


def test_agreement() -> None:
    """How often self-speculation and `auto` differ from autoregression in bf16."""
    found, page = measured("agreement"), PERFORMANCE.read_text()
    differ = [way["different"] for way in found["ways"].values()]
    assert f"of {found['prompts']} answers of {found['tokens']} tokens" in page
    assert (
        "{} differ under `self_speculation`, {} and {} in one forward of 32 and 64 tokens, {} under `auto` with one "
        "request at a time and {} under `auto` with 64 at once".format(*differ)
    ) in page
    assert f"at most {largest_gap(*found['ways'])} nats apart" in page


@pytest.mark.parametrize("machine", ["cpu", "gpu", "gpu_at_once"])
def test_arrivals(machine: str) -> None:
    """How long requests wait when others arrive."""
    page, names = PERFORMANCE.read_text(), ("first_token_ms", "chunk_ms", "token_ms", "forward_ms")
    for way, found in measured(f"arrivals_{machine}")["ways"].items():
        for share, load in found["loads"].items():
            cells = [f"{load[name]['p50']:.0f}, {load[name]['p99']:.0f}" for name in names]
            row = f"| `{way}` | {float(share):.0%} | {load['requests_per_s']:.1f} | {' | '.join(cells)} |"
            assert row in page


def test_steps_until_a_forward() -> None:
    """How long requests wait for a forward at p99, in units of the median."""

    def waits(run: str, *ways: str) -> str:
        loads = [load for way in ways for load in measured(run)["ways"][way]["loads"].values()]
        steps = [load["forward_ms"]["p99"] / load["forward_ms"]["p50"] for load in loads]
        return f"between {min(steps):.1f} and {max(steps):.1f}"

    page = PERFORMANCE.read_text()
    on_gpu, on_cpu = (waits(run, *measured(run)["ways"]) for run in ("arrivals_gpu", "arrivals_cpu"))
    assert f"p99 over p50 is {on_gpu}, and {on_cpu} on the CPU" in page
    plain, *ours = reversed(measured("arrivals_gpu_at_once")["ways"])
    at_once, in_plain = waits("arrivals_gpu_at_once", *ours), waits("arrivals_gpu_at_once", plain)
    assert f"Where every prefill interrupts it is {at_once}, and {in_plain} in plain SGLang" in page


def test_replicas() -> None:
    found = measured("replicas")
    same, answers = found["self_speculation as autoregressive"], found["answers"]
    assert same == answers
    assert all(set(by_replica.values()) == {answers // 2} for by_replica in found["by replica"].values())
    page = (ROOT / "docs" / "parallel.md").read_text()
    assert f"answered {answers} prompts in each mode, each replica half of them" in page
    assert f"gave the same answers to all {same} (`replicas.json`)" in page
