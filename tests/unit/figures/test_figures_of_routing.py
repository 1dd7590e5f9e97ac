"""Compare the figures of `auto` and the ways that it chooses among with those that were measured."""

from __future__ import annotations

import re
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


def below(run: dict[str, Any], target: float, errors: float = 0.0) -> set[tuple[str, str]]:
    """The cells in which `auto` is below a target, by more than so many of their errors."""
    return {
        (quality, concurrency)
        for quality, row in run["auto_over_best"].items()
        for concurrency, ratio in row.items()
        if ratio["mean"] + errors * ratio["standard_error"] < target
    }


def test_router_over_all_cells() -> None:
    page, run, before = PERFORMANCE.read_text(), measured("router_gpu"), measured("router_gpu_before")

    def mean_of(run: dict[str, Any]) -> str:
        ratios = [ratio["mean"] for row in run["auto_over_best"].values() for ratio in row.values()]
        assert len(ratios) == 24
        return f"{statistics.geometric_mean(ratios):.2f}"

    assert f"over the 24 cells is {mean_of(run)}, and {mean_of(before)} in the run before" in page
    assert (len(below(run, 0.97)), len(below(before, 0.97))) == (8, 5)
    assert len(below(run, 0.97, errors=2)) == 1
    assert below(run, 0.97) & below(before, 0.97) == {("m0", "16"), ("m3.2", "16")}
    assert "Eight of the 24 are below 0.97, one of them by more than twice its error, and two are in both runs" in page
    over = [
        row["auto"]["tokens_per_s"] / row["autoregressive"]["tokens_per_s"]
        for cells in run["cells"].values()
        for row in cells.values()
    ]
    assert f"`auto` has {min(over):.2f} of autoregression or more in every cell" in page
    for found, where in ((run, "at 128 requests"), (before, "in the run before")):
        crowds = [found["cells"][quality]["128"]["autoregressive"]["tokens_per_s"] for quality in QUALITIES]
        assert re.search(f"{min(crowds):,.0f} to {max(crowds):,.0f}[a-z ]* {where}", page)


def test_router_with_prefills_in_one_graph() -> None:
    page, ratios = PERFORMANCE.read_text(), []
    gains: dict[str, list[float]] = {"auto": [], "autoregressive": []}
    for load, label in (("router_gpu", ""), ("router_gpu_mixed", "two kinds")):
        before, run = measured(load), measured(load.replace("router_gpu", "router_gpu_one_graph"))
        for quality, cells in run["cells"].items():
            for concurrency, row in cells.items():
                speeds = {name: cell["tokens_per_s"] for name, cell in row.items()}
                contenders = (name for name in speeds if name != "auto" and row[name]["contends"])
                best = max(contenders, key=speeds.__getitem__)
                ratio = run["auto_over_best"][quality][concurrency]
                said = f"`{best.removeprefix('self_speculation/')}`) | {speeds['auto']:,.0f} | {over_best(ratio)} |"
                start = f"| {label or accepted(quality)} | {concurrency} | {speeds['autoregressive']:,.0f}"
                assert f"{start} | {speeds[best]:,.0f} ({said}" in page
                for way, gained in gains.items():
                    gained.append(speeds[way] / before["cells"][quality][concurrency][way]["tokens_per_s"])
                ratios.append(ratio)
    least = min(ratios, key=lambda ratio: ratio["mean"])
    [auto, plain] = gains.values()
    assert f"`auto` has {100 * min(auto) - 100:.0f} to {100 * max(auto) - 100:.0f}% more tokens per second" in page
    assert f"autoregression has {min(plain):.2f} to {max(plain):.2f} times what it had" in page
    assert f"It has {over_best(least)} of the best fixed way or more" in page
    assert f"{over_best(ratios[-2])} and {over_best(ratios[-1])} with two kinds of prompts, where the target" in page


def test_two_kinds_of_prompts() -> None:
    ratios = [measured("router_gpu_mixed")["auto_over_best"]["m0"][number] for number in ("8", "32")]
    means, errors = (
        "{:.2f} and {:.2f}".format(*(ratio[name] for ratio in ratios)) for name in ("mean", "standard_error")
    )
    assert f"With two kinds of prompts, {means} have errors of {errors}: the third" in PERFORMANCE.read_text()


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
    assert f"Deciding took {deciding:.0f} us per step with 128 requests on the host of an H200" in page
    assert f"decode autoregressively, and {reading:.0f} where they speculate" in page
    assert "Now it takes {:.0f} and {:.0f} on another host".format(*said("host_time_cpu")) in page


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
    steps = found["load steps, auto / fastest of all others"]
    assert f"it has at least {min(min(each.values()) for each in steps.values()):.3f} of the fastest of all" in page
    missed = [(quality, ratio) for quality, each in steps.items() for ratio in each.values() if ratio < 0.95]
    (crowd, of_crowd), (alone, of_one) = missed
    assert (crowd, alone) == ("easy", "medium")
    assert f"64 requests with {lengths[crowd]:g} accepted, {of_crowd:.3f}, and then one with {lengths[alone]:g}" in page
    assert f"accepted, {of_one:.3f}, where the clairvoyant policy is" in page
    medium = loads["medium, 1"]
    assert f"the clairvoyant policy is {medium['clairvoyant'] / medium[medium['best fixed']] - 1:.0%} faster" in page
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
