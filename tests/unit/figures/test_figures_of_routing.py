"""Compare the figures of `auto` and the ways that it chooses among with those that were measured."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from figures import PERFORMANCE, QUALITIES, README, ROOT, accepted, measured


@pytest.mark.parametrize(
    ("load", "quality", "label"),
    [*(("router_gpu", quality, "") for quality in QUALITIES), ("router_gpu_mixed", "m0", "two kinds")],
)
def test_router(load: str, quality: str, label: str) -> None:
    """`auto` on a GPU, at every concurrency, and in the run before."""
    found, before = measured(load), measured(f"{load}_before")["auto_over_best"][quality]

    for concurrency, row in found["cells"][quality].items():
        speeds = {name: cell["tokens_per_s"] for name, cell in row.items()}
        auto, plain = speeds["auto"], speeds["autoregressive"]
        ratios = [ratios[concurrency] for ratios in (found["auto_over_best"][quality], before)]
        best = max((name for name in speeds if name != "auto" and row[name]["contends"]), key=speeds.__getitem__)
        cells = f"{plain:,.0f} | {speeds[best]:,.0f} (`{best.removeprefix('self_speculation/')}`) | {auto:,.0f}"
        over = " | ".join(map(over_best, ratios))
        row = f"| {label or accepted(quality)} | {concurrency} | {cells} | {auto / plain:.2f} | {over} |"
        assert row in PERFORMANCE.read_text()


def over_best(ratio: dict[str, float]) -> str:
    """How the page writes `auto` over the best fixed way."""
    return f"{ratio['mean']:.2f} ± {ratio['standard_error']:.2f}"


def exactly(ratio: dict[str, float]) -> str:
    """The same where three digits count."""
    return f"{ratio['mean']:.3f} ± {ratio['standard_error']:.3f}"


def test_router_and_its_targets() -> None:
    page, run, before = PERFORMANCE.read_text(), measured("router_gpu"), measured("router_gpu_before")
    ratios = {(q, c): ratio for q, row in run["auto_over_best"].items() for c, ratio in row.items()}
    assert len(ratios) == 24
    (quality, concurrency), least = min(ratios.items(), key=lambda cell: cell[1]["mean"])
    assert least["mean"] >= 0.97
    where = f"with {concurrency} requests and {accepted(quality)} accepted"
    mean = statistics.geometric_mean(ratio["mean"] for ratio in ratios.values())
    assert f"lowest has {exactly(least)}, {where}, and the geometric mean over the 24 cells is {mean:.2f}" in page
    errors = [
        ratio["standard_error"]
        for row in before["auto_over_best"].values()
        for ratio in row.values()
        if ratio["mean"] < 0.97
    ]
    assert len(errors) == 8
    assert f"In the run before, eight were below, with errors of up to {max(errors):.2f}" in page


def test_router_and_ways_without_turns() -> None:
    page, run = PERFORMANCE.read_text(), measured("router_gpu")
    crowds = [run["cells"][quality]["64"]["autoregressive"]["tokens_per_s"] for quality in QUALITIES]
    assert f"{min(crowds):,.0f} to {max(crowds):,.0f} tokens per second at 64 requests" in page
    faster: dict[tuple[str, str], str] = {}
    for quality, cells in run["cells"].items():
        for concurrency, row in cells.items():
            speeds = {
                contends: max(cell["tokens_per_s"] for cell in row.values() if cell["contends"] is contends)
                for contends in (True, False)
            }
            if speeds[False] > speeds[True]:
                faster[accepted(quality), concurrency] = f"{speeds[False] / speeds[True]:.2f}"
    assert faster.keys() == {("26.5", "32"), ("26.5", "128")}
    alone, crowd = faster.values()
    assert f"those with turns: {crowd} times at 128 requests, and {alone} at 32" in page


def test_router_over_autoregression() -> None:
    page, run = PERFORMANCE.read_text(), measured("router_gpu")
    over: dict[tuple[str, str], float] = {}
    best: dict[tuple[str, str], float] = {}
    for quality, cells in run["cells"].items():
        for concurrency, row in cells.items():
            speeds = {way: cell["tokens_per_s"] / row["autoregressive"]["tokens_per_s"] for way, cell in row.items()}
            over[quality, concurrency] = speeds.pop("auto")
            best[quality, concurrency] = max(speed for way, speed in speeds.items() if row[way]["contends"])
    assert min(over.values()) >= 0.98
    assert f"0.98 of autoregression in every cell: reached, the lowest has {min(over.values()):.3f}" in page
    [(quality, concurrency)] = [cell for cell in over if over[cell] <= 1 < best[cell]]
    missed = run["auto_over_autoregressive"][quality][concurrency]
    assert f"{concurrency} requests with {accepted(quality)} accepted, where `auto` has {exactly(missed)} of it" in page
    assert f"blocks of 4 have {best[quality, concurrency]:.2f}" in page


def test_two_kinds_of_prompts() -> None:
    page, on_gpu, simulated = PERFORMANCE.read_text(), measured("router_gpu_mixed"), measured("router_sim")["loads"]
    ratios = [on_gpu["auto_over_best"]["m0"][number] for number in ("8", "32")]
    assert "missed, with {} and {} at 8 and 32 requests".format(*map(exactly, ratios)) in page
    said = (f"{simulated[f'mixed, {number}']['auto / best fixed']:.2f}" for number in (8, 32))
    assert "In simulation it is {} and {}".format(*said) in page
    easy = measured("router_gpu")["cells"]["m0"]["32"]
    rows = (simulated["mixed, 32"], on_gpu["cells"]["m0"]["32"], simulated["easy, 32"], easy)
    blocks = [speed(row, "self_speculation/8") / speed(row, "autoregressive") for row in rows]
    of_both, of_easy = "{:.2f} times the speed of autoregression there, and {:.2f} here", "{:.2f} and {:.2f} times"
    assert of_both.format(*blocks[:2]) in page
    assert f"with easy prompts alone they have {of_easy.format(*blocks[2:])}" in page


def speed(row: dict[str, Any], way: str) -> float:
    """Tokens per second of a way that was measured, or simulated."""
    found = row[way]
    return float(found["tokens_per_s"] if isinstance(found, dict) else found)


def test_router_in_the_readme() -> None:
    def over(concurrency: str) -> str:
        rows = [measured("router_gpu")["cells"][quality][concurrency] for quality in QUALITIES]
        ratios = [row["auto"]["tokens_per_s"] / row["autoregressive"]["tokens_per_s"] for row in rows]
        return "{:.1f}, {:.1f} and {:.1f} times".format(*ratios)

    lengths = "{}, {} and {} tokens of a draft are accepted".format(*map(accepted, QUALITIES))
    said = f"where {lengths}, `auto` has {over('1')} the tokens per second of autoregression at one request"
    assert f"{said}, and {over('32')} at 32" in README.read_text()


def test_deployment() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text()
    cells = measured("router_gpu")["cells"]["m2.6"]
    alone, crowd = (f"{cells[number]['auto']['tokens_per_s']:,.0f}" for number in ("1", "128"))
    assert f"{alone} tokens per second to one request and {crowd} to 128" in page
    assert f"where {accepted('m2.6')} tokens of a draft are accepted" in page
    at_once, together = (
        measured(name)["ways"]["self_speculation"]["capacity"]["requests_per_s"]
        for name in ("arrivals_gpu_at_once", "arrivals_gpu")
    )
    assert f"answered {together:.0f} requests of 64 clients per second with it on an H200, and {at_once:.0f}" in page


def test_host_time() -> None:
    def said(name: str) -> tuple[float, float]:
        found = measured(name)
        return found["deciding_us_per_step_of_128"], found["deciding_us_per_step_of_128_that_speculate"]

    page, (deciding, reading) = PERFORMANCE.read_text(), said("host_time")
    assert f"Deciding took {deciding:.0f} us per step with 128 requests on the host of two H200s" in page
    assert f"decode autoregressively, and {reading:.0f} where they speculate" in page
    assert "as it is now, it is {:.0f} and {:.0f} (".format(*said("host_time_cpu")) in page
    assert f"at start took {measured('router_gpu')['seconds_to_measure_forwards']} s" in page


def test_router_on_a_cpu() -> None:
    found = measured("router_cpu")
    [rows], [ratios] = found["cells"].values(), found["auto_over_best"].values()
    seen = [f"{ratios[number]['mean']:.2f} ± {ratios[number]['standard_error']:.2f}" for number in ("1", "16")]
    assert f"`auto` has {seen[0]} and {seen[1]} of the best fixed way's throughput" in PERFORMANCE.read_text()
    for row in rows.values():
        assert set(row["auto"]["requests"]) == {"self_speculation/32"}


def test_simulated_loads() -> None:
    found, page = measured("router_sim"), PERFORMANCE.read_text()
    loads = found["loads"]
    ratio = {name: row["auto / best fixed"] for name, row in loads.items()}
    lengths = found["acceptance length"]
    ranges = []
    for quality in lengths:
        seen = [ratio[f"{quality}, {number}"] for number in (1, 2, 8, 32, 128)]
        ranges.append(f"{min(seen):.2f} to {max(seen):.2f}")
    assert "acceptance lengths {}, {} and {}".format(*(f"{length:g}" for length in lengths.values())) in page
    assert "`auto` has {}, {} and {} of the best fixed way at 1, 2, 8, 32 and 128 requests".format(*ranges) in page
    others = [ratio[name] for name in ratio if name.endswith(("bursts", "a day", "long beside short"))]
    assert f"{min(others):.2f} to {max(others):.2f} in bursts, over a day, and with one long request" in page
    short = [f"{ratio[f'medium, {number}, short']:.2f}" for number in (16, 64, 128)]
    assert "{}, {} and {} at 16, 64 and 128 requests".format(*short) in page
    least = min(min(each.values()) for each in found["load steps, auto / fastest of all others"].values())
    assert least >= 0.95
    assert f"it has {least:.3f} of the fastest of all others or more, the clairvoyant policy among them" in page
    renewed = found["new weights, auto / best fixed"].values()
    assert (
        f"{min(renewed):.2f} to {max(renewed):.2f} of the best fixed way in the 15 seconds behind new weights" in page
    )
    mixed = [loads[f"mixed, {number}"] for number in (8, 32, 128)]
    best = [row[row["best fixed"]] for row in mixed]
    cells = [f"{row[way] / of:.2f}" for way in ("auto", "clairvoyant") for row, of in zip(mixed, best, strict=True)]
    assert "{}, {} and {} of the best fixed way at 8, 32 and 128 requests".format(*cells[:3]) in page
    assert "clairvoyant policy has {}, {} and {}".format(*cells[3:]) in page


def test_best_of_all_ways() -> None:
    page, cells = PERFORMANCE.read_text(), measured("router_budgets")["cells"]
    for concurrency in ("1", "2", "4", "8", "16", "32", "64", "128"):
        shown = []
        for quality in QUALITIES:
            row = cells[quality][concurrency]
            contenders = {way: row[way]["tokens_per_s"] for way in row if way != "auto" and row[way].get("contends")}
            best = max(contenders, key=contenders.__getitem__)
            ratio = contenders[best] / row["autoregressive"]["tokens_per_s"]
            shown.append(f"{contenders[best]:,.0f} (`{best.removeprefix('self_speculation/')}`), {ratio:.2f}")
        assert f"| {concurrency} | {' | '.join(shown)} |" in page
