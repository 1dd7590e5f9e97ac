"""Compare what prefills in one CUDA graph gain, and what they take the host in pieces, with what was measured."""

from __future__ import annotations

import statistics

from figures import PERFORMANCE, measured


def test_prefills_in_one_graph() -> None:
    page, found = PERFORMANCE.read_text(), measured("prefill_graphs")
    for load, of_load in found["tokens_per_s"].items():
        concurrency, way = load.split(", ")
        pieces, one_graph = of_load["pieces"], of_load["one_graph"]
        ratios = (f"{whole / cut:.2f}" for whole, cut in zip(one_graph, pieces, strict=True))
        turns = (", ".join(f"{speed:,}" for speed in speeds) for speeds in (pieces, one_graph))
        assert f"| {concurrency} | `{way}` | {' | '.join(turns)} | {', '.join(ratios)} |" in page
    for prompt, ms in found["first_token_ms"].items():
        num_cached, _, num_new, _ = prompt.split()
        assert f"| {num_cached} | {num_new} | {ms['pieces']:.1f} | {ms['one_graph']:.1f} |" in page
    alike = [answers.split(" of ") for answers in found["same_answers"].values()]
    assert all(same == of for same, of in alike)
    assert f"All {sum(int(of) for _, of in alike)} answers that were compared are the same" in page
    whole, cut = (
        f"{found['captured'][kind]['seconds']:.0f} s and {found['captured'][kind]['gb']:.1f} GB"
        for kind in ("one_graph", "pieces")
    )
    assert f"took {whole} in place of {cut}" in page


def test_how_long_the_host_takes() -> None:
    page, seconds = PERFORMANCE.read_text(), measured("scheduler_seconds")["seconds"]
    launch = seconds["prefill_launch_ms"]
    assert f"took the scheduler's process {min(launch):.0f} to {max(launch):.0f} ms" in page
    others = (seconds[name] for name in ("step_launch_ms", "prefill_preparation_ms"))
    correlations = (f"{statistics.correlation(launch, ms):.2f}" for ms in others)
    assert "their correlations with it are {} and {}".format(*correlations) in page
    assert "there is a prefill after every second step" in page
    assert round(statistics.median(seconds["steps"]) / statistics.median(seconds["prefills"])) == 2
    between, busy = (
        statistics.median(measured("scheduler_seconds")["prefills"][f"{n}_ms"]) for n in ("between_steps", "busy")
    )
    assert f"there were {between:.0f} ms, of which the device was busy for {busy:.1f}" in page
