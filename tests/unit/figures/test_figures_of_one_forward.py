"""Compare the figures of speculation in one forward with those that were measured."""

from __future__ import annotations

from figures import KINDS, ONE_FORWARD, PERFORMANCE, QUALITIES, accepted, fastest, largest_gap, measured


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
    crowd = measured("router_gpu")["cells"]["m3.2"]["64"]
    slower = crowd["self_speculation/one_forward/16"]["tokens_per_s"] / crowd["self_speculation/4"]["tokens_per_s"]
    assert f"with 64 and {accepted('m3.2')} accepted, a budget of 16 has {slower:.2f} of the speed" in page


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


def test_attention_of_one_forward() -> None:
    rows = measured("block_attention")["rows with branches, batch x prefix x width"]
    ratios = [row["ratio"] for row in rows.values()]
    assert f"takes {min(ratios):.2f} to {max(ratios):.2f} of the time of rows as wide" in ONE_FORWARD.read_text()


def test_agreement_of_one_forward() -> None:
    found, page = measured("agreement"), ONE_FORWARD.read_text()
    ways = "one forward of 32", "one forward of 64", "self_speculation"
    narrow, wide, linear = (found["ways"][way]["different"] for way in ways)
    assert (
        f"{narrow} of {found['prompts']} answers differed from autoregression with a budget of 32, and {wide} with 64, "
        f"by up to {largest_gap(*ways[:2])} nats where they part; {linear} when drafted in turn, by up to "
        f"{largest_gap(ways[2])}."
    ) in page
