"""Compare the figures in the README, in docs/ and on the bundled model's card with those that were measured."""

from __future__ import annotations

import importlib
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

from dlm_serve import bundled

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README, PERFORMANCE, MODELS = (ROOT / name for name in ("README.md", "docs/performance.md", "docs/models.md"))
ONE_FORWARD = ROOT / "docs" / "one-forward.md"
CARD = bundled.FOLDER / "README.md"
COLUMNS = ("exact match", "forward passes", "tokens per forward", "acceptance length", "equal to `autoregressive`")
HEAD = f"| mode | {' | '.join(COLUMNS)} |\n|---|---|---|---|---|---|"


def measured(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def results(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = measured(name)["results"]
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


@pytest.mark.parametrize("name", ["decode_speed", "release_shapes"])
def test_step_times(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])  # the script extends it
    assert importlib.import_module(name).table(measured(name)) in PERFORMANCE.read_text()


def test_second_forward() -> None:
    """The figure that misses its target."""
    ratio = measured("decode_speed")["ratios"]["127 autoregressive beside one self-speculation / without, 128"]
    assert f"At 128 tokens of context the fourth row is {ratio:.2f}, " in PERFORMANCE.read_text()


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
    assert "take {} ms so for the pattern, and {} ms for the schema".format(*nano) in page
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


def largest_gap(*ways: str) -> float:
    """By how many nats tokens differ at most where answers of these ways part from autoregression."""
    found = measured("agreement")["ways"]
    return max(abs(nats) for way in ways for nats in found[way]["gaps_nats"])


QUALITIES = ("m0", "m2.6", "m3.2")
"""Checkpoints of `router_gpu.json` and `router_budgets.json`, by the noise on their drafts."""


def accepted(quality: str) -> str:
    rows = measured("router_gpu")["cells"][quality].values()
    lengths = [row["self_speculation/32"]["acceptance_length"] for row in rows if "self_speculation/32" in row]
    return f"{statistics.mean(lengths):.1f}"


@pytest.mark.parametrize(
    ("load", "quality", "label"),
    [*(("router_gpu", quality, "") for quality in QUALITIES), ("router_gpu_mixed", "m0", "two kinds")],
)
def test_router(load: str, quality: str, label: str) -> None:
    """`auto` on a GPU, at every concurrency."""
    found = measured(load)
    for concurrency, row in found["cells"][quality].items():
        speeds = {name: cell["tokens_per_s"] for name, cell in row.items()}
        auto, plain, ratio = speeds["auto"], speeds["autoregressive"], found["auto_over_best"][quality][concurrency]
        best = max((name for name in speeds if name != "auto" and row[name]["contends"]), key=speeds.__getitem__)
        cells = f"{plain:,.0f} | {speeds[best]:,.0f} (`{best.removeprefix('self_speculation/')}`) | {auto:,.0f}"
        over = f"{ratio['mean']:.2f} ± {ratio['standard_error']:.2f} | {auto / plain:.2f}"
        assert f"| {label or accepted(quality)} | {concurrency} | {cells} | {over} |" in PERFORMANCE.read_text()


def test_router_over_all_cells() -> None:
    page, found = PERFORMANCE.read_text(), measured("router_gpu")
    over_best = [ratio for ratios in found["auto_over_best"].values() for ratio in ratios.values()]
    assert len(over_best) == 24

    def mean(cells: list[dict[str, float]]) -> str:
        return f"{statistics.geometric_mean(each['mean'] for each in cells):.2f}"

    assert f"over the 24 cells is {mean(over_best)}" in page
    busy, quiet = mean(over_best[:10]), mean(over_best[10:])
    assert f"has {busy} of the best fixed way in those cells, and {quiet} in the fourteen others" in page
    below = [each for each in over_best if each["mean"] < 0.97]
    clearly = [each for each in below if each["mean"] + 2 * each["standard_error"] < 0.97]
    assert (len(below), len(clearly)) == (7, 2), "Seven of the 24 are below 0.97, two by more than twice their error"
    over_plain = [ratio for ratios in found["auto_over_autoregressive"].values() for ratio in ratios.values()]
    [slower] = [each for each in over_plain if each["mean"] < 0.98]
    assert 0.98 - slower["mean"] < slower["standard_error"], "one is below 0.98, by less than its error"
    rows = {quality: found["cells"][quality] for quality in QUALITIES}
    crowds = [row["128"]["autoregressive"]["tokens_per_s"] for row in rows.values()]
    assert f"has {min(crowds):,.0f} to {max(crowds):,.0f} tokens per second at 128 requests" in page
    assert f"moved between ways {rows['m2.6']['1']['auto']['mode_switches']} times" in page
    assert f"{rows['m3.2']['2']['auto']['mode_switches']} moves" in page


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
    page, found = PERFORMANCE.read_text(), measured("host_time")
    assert f"Deciding took {found['deciding_us_per_step_of_128']:.0f} us" in page
    assert f"256 autoregressive requests, {found['ms_per_step']['all autoregressive']:.3f} here" in page


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
    behind = [each for steps in found["load steps, auto / fastest of all others"].values() for each in steps.values()]
    assert f"it has at least {min(behind):.2f} of the fastest of all others" in page
    mixed = [loads[f"mixed, {number}"] for number in (8, 32)]
    best = [row[row["best fixed"]] for row in mixed]
    cells = [f"{row[way] / of:.2f}" for way in ("auto", "clairvoyant") for row, of in zip(mixed, best, strict=True)]
    assert "{} and {} of the best fixed way at 8 and 32 requests".format(*cells[:2]) in page
    assert "clairvoyant policy has {} and {}".format(*cells[2:]) in page


def one_forward_cells() -> dict[str, Any]:
    cells: dict[str, Any] = measured("one_forward")["cells"]
    return cells


def test_steps_of_one_forward() -> None:
    page, steps = ONE_FORWARD.read_text(), measured("one_forward_steps")["cells"]["server"]["steps"]
    for tokens in (4, 8, 16, 32, 64, 96, 128):
        found = (steps.get(f"{kind} {tokens}") for kind in ("linear", "one forward"))
        cells = (f"{each['ms']:.2f} ms | {each['ratio']:.2f}" if each else " | " for each in found)
        assert f"| {tokens} | {' | '.join(cells)} |" in page
    ratios = [f"{steps[f'one forward {budget}']['ratio']:.3f}" for budget in (64, 96, 128)]
    assert f"| {', '.join(ratios)}: the first two missed |" in page
    assert f"an autoregressive step takes {steps['autoregressive']['ms']:.2f} ms" in page
    two, one = 2 * steps["one forward 32"]["ms"], steps["one forward 64"]["ms"]
    assert f"two forwards of 32 tokens take {two:.2f} ms, one of 64 takes {one:.2f}" in page


def test_profile_of_one_forward() -> None:
    us, page = measured("one_forward_profile")["us"], ONE_FORWARD.read_text()
    parts = {name: us[name] / 1000 for name in ("all kernels", "matrix products", "adapter", "attention", "norms")}
    assert (
        "Of {:.2f} ms of kernels {:.2f} were matrix products, {:.2f} the adapter (in two kernels then), {:.2f} "
        "attention and {:.2f} norms".format(*parts.values())
    ) in page
    assert f"| planner and advance | 15 us | {us['plan'] + us['advance']:.1f} us" in page


def test_second_choices() -> None:
    found = measured("second_choices")
    assert f"by replay of {found['prompts']} answers" in ONE_FORWARD.read_text()
    for prompts, cells in found["cells"].items():
        without, chosen = ([cells[f"budget {budget}, {rho}"] for budget in (32, 64, 96)] for rho in ("0.0", "0.4"))
        row = [f"{a['forwards']} | {b['saved']:.1%}" for a, b in zip(without, chosen, strict=True)]
        assert f"| {prompts} | {' | '.join(row)} |" in ONE_FORWARD.read_text()


KINDS = ("linear", "one forward")


def fastest(row: dict[str, Any], kind: str) -> str:
    """The fastest way of a kind, `linear` or `one forward`, of those that were measured at a concurrency."""
    ways = [way for way in row if way.startswith("self_speculation/") and row[way]["tokens_per_s"]]
    return max(
        (way for way in ways if ("one_forward" in way) == (kind == "one forward")),
        key=lambda way: float(row[way]["tokens_per_s"]),
    )


def test_speed_of_one_forward() -> None:
    page, over = ONE_FORWARD.read_text(), []
    for quality in QUALITIES:
        rows = measured("router_budgets")["cells"][quality]
        accepted = f"{rows['1']['self_speculation/32']['acceptance_length']:.1f}"
        ways = "32", *(f"one_forward/{budget}" for budget in (16, 32, 64, 96, 128))
        alone = [rows["1"].get(f"self_speculation/{way}") for way in ways]
        per_forward = [f"{way['tokens_per_forward']:.1f}" if way else "" for way in alone]
        assert f"| {accepted} | {' | '.join(per_forward)} |" in page
        for concurrency in ("1", "2", "4", "8", "16"):
            row = rows[concurrency]
            linear, one = fastest(row, "linear"), fastest(row, "one forward")
            in_turn, at_once, plain = (row[way]["tokens_per_s"] for way in (linear, one, "autoregressive"))
            cells = [
                *(accepted, concurrency, f"{plain:,.0f}", f"{in_turn:,.0f} ({linear.split('/')[-1]})"),
                *(f"{at_once:,.0f} ({one.split('/')[-1]})", f"{at_once / in_turn:.2f}", f"{at_once / plain:.2f}"),
            ]
            assert f"| {' | '.join(cells)} |" in page
            if concurrency == "1":
                over.append((accepted, *cells[-2:]))
    accepted, in_turn, plain = ("{}, {} and {}".format(*each) for each in zip(*over, strict=True))
    assert (
        f"{in_turn} times the tokens per second of drafting in turn where {accepted} tokens of a draft are accepted, "
        f"which is {plain} times autoregression"
    ) in PERFORMANCE.read_text()


def test_one_forward_in_the_run_that_is_drawn() -> None:
    def over(quality: str, concurrency: str) -> str:
        row = measured("router_gpu")["cells"][quality][concurrency]
        linear, one = (row[fastest(row, kind)]["tokens_per_s"] for kind in KINDS)
        return f"{one / linear:.2f}"

    alone, page = [over(quality, "1") for quality in QUALITIES], ONE_FORWARD.read_text()
    lengths = "{}, {} and {} accepted".format(*map(accepted, QUALITIES))
    several = f"{over('m2.6', '4')} and {over('m2.6', '8')}"
    assert "{}, {} and {} times the speed of drafting in turn at one request with ".format(*alone) + lengths in page
    assert f"and {several} at 4 and 8 requests with {accepted('m2.6')}" in page
    assert f"reached; {alone[0]} in the run that is drawn" in page
    assert f"reached; {alone[1]} in the run that is drawn" in page
    assert f"; {several} in the run that is drawn" in page


def test_one_forward_alone() -> None:
    """One request, with drafts of two more qualities."""
    page = ONE_FORWARD.read_text()
    for cells in measured("one_forward_alone")["cells"].values():
        row = cells["speed at 1"]
        speeds = {way: figures["tokens_per_s"] for way, figures in row.items()}
        linear, one = (max((w for w in speeds if w.startswith(kind)), key=speeds.__getitem__) for kind in KINDS)
        best = max(speed for way, speed in speeds.items() if way != "auto")
        shown = [
            f"{row['linear 32']['acceptance_length']:.1f}",
            f"{speeds['autoregressive']:,.0f}",
            *(f"{speeds[way]:,.0f} ({way.split()[-1]})" for way in (linear, one)),
            f"{speeds[one] / speeds[linear]:.2f}",
            f"{speeds[one] / speeds['autoregressive']:.2f}",
            f"{speeds['auto'] / best:.2f}",
        ]
        assert f"| {' | '.join(shown)} |" in page


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


def test_draft_adapter() -> None:
    for tokens, us in measured("draft_adapter")["tokens"].items():
        assert f"| {tokens} | {' | '.join(f'{value:.1f} us' for value in us.values())} |" in PERFORMANCE.read_text()


def test_attention_of_one_forward() -> None:
    rows = measured("block_attention")["rows with branches, batch x prefix x width"]
    ratios = [row["ratio"] for row in rows.values()]
    assert f"takes {min(ratios):.2f} to {max(ratios):.2f} of the time of rows as wide" in ONE_FORWARD.read_text()


@pytest.mark.parametrize("run", ["quantised_nano", "quantised_nano_formats"])
def test_quantised_nano(run: str) -> None:
    for name, by_mode in measured(run)["formats"].items():
        speculative = by_mode["self_speculation"]
        cells = [f"{by_mode[mode]['exact_match']:.1%}" for mode in ("autoregressive", "diffusion", "self_speculation")]
        alike = f"{speculative['as_autoregressive']} of {speculative['answers']}"
        row = f"| {name} | {' | '.join(cells)} | {alike} | {speculative['tokens_per_forward']:.2f} |"
        assert row in MODELS.read_text()


def test_agreement_of_one_forward() -> None:
    found, page = measured("agreement"), ONE_FORWARD.read_text()
    ways = "one forward of 32", "one forward of 64", "self_speculation"
    narrow, wide, linear = (found["ways"][way]["different"] for way in ways)
    assert (
        f"{narrow} of {found['prompts']} answers differed from autoregression with a budget of 32, and {wide} with 64, "
        f"by up to {largest_gap(*ways[:2])} nats where they part; {linear} when drafted in turn, by up to "
        f"{largest_gap(ways[2])}."
    ) in page


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
    busy = measured("vllm_speed_busy_host")
    over_stock = (busy["autoregressive"][number]["ours_over_stock"] for number in ("1", "32"))
    assert "they had {} at one request and {} at 32".format(*over_stock) in page
    assert (
        f"took {busy['forward']['1']['over_autoregressive']['self_speculation']:.2f} of an autoregressive one" in page
    )


def test_vllm_agreement() -> None:
    page = (ROOT / "docs" / "vllm.md").read_text()
    ours, theirs = (measured(name)["checkpoints"] for name in ("vllm_agreement", "bf16_agreement_gpu"))
    plain, adapted = ours.values()
    assert f"{plain['same']} of {plain['answers']} recorded answers keep their tokens" in page
    assert f"and {adapted['same']} of {adapted['answers']} with an adapter" in page
    assert "on SGLang {} and {}".format(*(theirs[name]["same"] for name in ours)) in page
