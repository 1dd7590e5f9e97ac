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


def test_agreement() -> None:
    """How often self-speculation and `auto` differ from autoregression in bf16."""
    found, page = measured("agreement"), PERFORMANCE.read_text()
    differ = [way["different"] for way in found["ways"].values()]
    assert f"of {found['prompts']} answers of {found['tokens']} tokens" in page
    ways = "under `self_speculation`", "under `auto` with one request at a time", "under `auto` with 64 at once"
    for number, way in zip(differ, ways, strict=True):
        assert re.search(rf"\b{number} (differ )?{way}", page), way
    largest = max(abs(nats) for way in found["ways"].values() for nats in way["gaps_nats"])
    assert f"({largest} nats; `benchmarks/agreement.py`" in page


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
    assert f"over the fifteen cells is {statistics.geometric_mean(each['mean'] for each in over_best):.2f}" in page
    below = [each for each in over_best if each["mean"] < 0.97]
    clearly = [each for each in below if each["mean"] + 2 * each["standard_error"] < 0.97]
    assert (len(over_best), len(below), len(clearly)) == (15, 8, 3)
    rows = {quality: found["cells"][quality] for quality in QUALITIES}
    crowds = [row["128"]["autoregressive"]["tokens_per_s"] for row in rows.values()]
    assert f"has {min(crowds):,.0f} to {max(crowds):,.0f} tokens per second at 128 requests" in page
    good, poor = (
        {way: cell["tokens_per_s"] for way, cell in rows[quality][number].items()}
        for quality, number in (("m0", "8"), ("m3.2", "32"))
    )
    lost = good["self_speculation/one_forward/32"] / good["self_speculation/32"]
    assert f"which had {lost:.2f} of blocks of 32" in page
    assert f"which had {poor['self_speculation/4'] / poor['self_speculation/8']:.2f} of blocks of 8" in page


INTERRUPTED = "router_gpu_interrupted"


def test_interrupted_run_of_the_router() -> None:
    found, page = measured(INTERRUPTED)["auto_over_best"], PERFORMANCE.read_text()
    good, noisy = ([f"{ratio['mean']:.2f}" for ratio in found[quality].values()] for quality in ("m0", "m2.6"))
    assert "`auto` has {}, {}, {}, {} and {} of the best fixed way at 1, 2, 4, 8 and 16 requests".format(*good) in page
    assert "and {}, {}, {}, {} and {} with noisier drafts".format(*noisy) in page
    ratios = [ratio for of_quality in found.values() for ratio in of_quality.values()]
    assert f"the geometric mean is {statistics.geometric_mean(each['mean'] for each in ratios):.2f}" in page
    assert f"largest standard error is {max(each['standard_error'] for each in ratios):.2f}" in page


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
    blocks = (measured(run)["cells"]["m0"]["16"]["self_speculation/32"] for run in (INTERRUPTED, "router_budgets"))
    together, at_once = (f"{way['tokens_per_s']:,.0f}" for way in blocks)
    assert f"gave 16 clients on an H200 {together} tokens per second with it, and {at_once} in an earlier run" in page


def test_host_time() -> None:
    assert f"Deciding took {measured('host_time')['deciding_us_per_step_of_128']:.0f} us" in PERFORMANCE.read_text()


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


def test_quantised_nano() -> None:
    for name, by_mode in measured("quantised_nano")["formats"].items():
        speculative = by_mode["self_speculation"]
        cells = [f"{by_mode[mode]['exact_match']:.1%}" for mode in ("autoregressive", "diffusion", "self_speculation")]
        alike = f"{speculative['as_autoregressive']} of {speculative['answers']}"
        row = f"| {name} | {' | '.join(cells)} | {alike} | {speculative['tokens_per_forward']:.2f} |"
        assert row in MODELS.read_text()


def test_agreement_of_one_forward() -> None:
    found, page = one_forward_cells()["m2.25"]["answers"], ONE_FORWARD.read_text()
    [linear, narrow, wide] = (found[way] for way in ("linear 32", "one forward 32", "one forward 64"))
    largest = [f"{max(each['gaps_nats']):.3f}" for each in (narrow, wide, linear)]
    assert (
        f"{narrow['different']} of {narrow['answers']} answers differed from autoregression with a budget of 32, and "
        f"{wide['different']} with 64, by up to {largest[0]} and {largest[1]} nats where they part; "
        f"{linear['different']} when drafted in turn, by up to {largest[2]}."
    ) in page


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
def test_arrivals(machine: str) -> None:
    """How long requests wait when others arrive."""
    page, names = PERFORMANCE.read_text(), ("first_token_ms", "chunk_ms", "token_ms", "forward_ms")
    for way, found in measured(f"arrivals_{machine}")["ways"].items():
        for share, load in found["loads"].items():
            cells = [f"{load[name]['p50']:.0f}, {load[name]['p99']:.0f}" for name in names]
            row = f"| `{way}` | {float(share):.0%} | {load['requests_per_s']:.1f} | {' | '.join(cells)} |"
            assert row in page


def test_steps_until_a_forward() -> None:
    """The target that was missed on a GPU."""
    steps: dict[str, list[float]] = {"ours": [], "plain SGLang": [], "on a CPU": []}
    for machine, otherwise in (("gpu", "ours"), ("cpu", "on a CPU")):
        for way, found in measured(f"arrivals_{machine}")["ways"].items():
            forwards = [load["forward_ms"] for load in found["loads"].values()]
            steps[way if way in steps else otherwise] += [ms["p99"] / ms["p50"] for ms in forwards]
    ours, plain, on_cpu = (f"between {min(found):.1f} and {max(found):.1f}" for found in steps.values())
    assert f"p99 over p50 is {ours}, and {plain} in plain SGLang" in PERFORMANCE.read_text()
    assert f"with which it is {on_cpu} on the CPU" in PERFORMANCE.read_text()


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
