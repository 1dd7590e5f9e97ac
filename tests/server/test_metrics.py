"""What `/metrics` counts is what requests say of themselves; what SGLang reports beside it is right, or absent."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from typing import Any

import requests
from golden import NEMOTRON_LABS_DIFFUSION, TRAINED
from serving import Server, generate_body

from dlm_serve.metrics import registry

SAMPLE = re.compile(r"^([\w:]+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')


def scrape(server: Server) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All samples of `/metrics`, by name and labels, of ours without SGLang's."""
    text = requests.get(f"{server.url}/metrics", timeout=30).text
    ours = {series: metric for metric in registry.METRICS for series in metric.series}
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for name, labels, value in SAMPLE.findall(text):
        kept = (*ours[name].labels, "le") if name in ours else ("mode", "le")
        key = name, tuple((label, said) for label, said in LABEL.findall(labels) if label in kept)
        found[key] = found.get(key, 0) + float(value)
    return found


def total(samples: dict[tuple[str, tuple[tuple[str, str], ...]], float], name: str, **labels: str) -> float:
    """The sum of a series over all labels but those given."""
    return sum(
        value for (found, said), value in samples.items() if found == name and labels.items() <= dict(said).items()
    )


def growth_of(server: Server, before: Any, expected: dict[str, float]) -> dict[str, float]:
    """By how much each series has grown, as soon as it is what is expected: scrapes lag by a moment."""
    deadline = time.monotonic() + 10
    while True:
        now = scrape(server)
        grown = {name: total(now, name) - total(before, name) for name in expected}
        if grown == expected or time.monotonic() > deadline:
            return grown
        time.sleep(0.1)


def aborted(server: Server) -> dict[str, Any]:
    """The answer to a request that is aborted while it runs."""
    answers: list[dict[str, Any]] = []
    body = {**generate_body([5, 6, 7], 1000, mode="diffusion", ignore_eos=True), "rid": "to-be-aborted"}
    asking = threading.Thread(target=lambda: answers.append(server.post("/generate", body).json()))
    asking.start()
    time.sleep(0.3)
    server.post("/abort_request", {"rid": "to-be-aborted"})
    asking.join()
    return answers[0]


def test_counters_are_what_requests_say(crowded: Server) -> None:
    """With steps that overlap, requests that are retracted and resume, and one that is aborted."""
    before = scrape(crowded)
    reference = [case for case in NEMOTRON_LABS_DIFFUSION.cases(TRAINED) if len(case["output_ids"]) > 20]
    answers = NEMOTRON_LABS_DIFFUSION.ask(crowded, reference[::6], 40)
    answers += crowded.generate_all([generate_body([5, 6, 7 + i], 30, ignore_eos=True) for i in range(12)], 6)
    answers.append(crowded.generate([5, 6, 7], 1, mode="diffusion"))
    answers.append(aborted(crowded))
    said = [answer["meta_info"] for answer in answers]
    assert said[-1]["finish_reason"]["type"] == "abort"
    num_retractions = sum(meta_info["num_retractions"] for meta_info in said)
    assert num_retractions > 0

    num_tokens = sum(meta_info["completion_tokens"] for meta_info in said)
    expected = {
        "dlm_forward_passes_total": sum(meta_info["dlm"]["nfe"] for meta_info in said),
        "dlm_tokens_total": num_tokens,
        "dlm_requests_total": len(said),
        "dlm_mode_switches_total": sum(meta_info["dlm"]["mode_switches"] for meta_info in said),
        "dlm_tokens_per_forward_count": sum(meta_info["dlm"]["nfe"] > 0 for meta_info in said),
    }
    assert growth_of(crowded, before, expected) == expected
    assert [sum(meta_info["dlm"]["tokens"].values()) for meta_info in said] == [
        meta_info["completion_tokens"] for meta_info in said
    ]
    now = scrape(crowded)
    by_mode: Counter[str] = Counter()
    for meta_info in said:
        for name, number in meta_info["dlm"]["tokens"].items():
            by_mode[name.partition("/")[0]] += number
    assert by_mode == {
        mode: total(now, "dlm_tokens_total", mode=mode) - total(before, "dlm_tokens_total", mode=mode)
        for mode in by_mode
    }
    ends = Counter(meta_info["finish_reason"]["type"] for meta_info in said)
    assert ends == {
        end: total(now, "dlm_requests_total", outcome=end) - total(before, "dlm_requests_total", outcome=end)
        for end in ends
    }
    # SGLang counts the tokens of decode steps. Each request's first comes from its EXTEND call, and so does one more
    # behind each retraction, unless the request is retracted again at once.
    decoded = "sglang:realtime_tokens_total"
    grown = total(now, decoded, mode="decode") - total(before, decoded, mode="decode")
    assert 0 <= num_tokens - len(said) - grown <= num_retractions


def test_nothing_runs_when_nothing_is_asked(crowded: Server) -> None:
    crowded.generate([5, 6, 7], 20)
    time.sleep(0.2)
    now = scrape(crowded)
    assert (total(now, "dlm_rows"), total(now, "dlm_block_width")) == (0, 0)
    slots = {state: total(now, "dlm_kv_slots", state=state) for state in ("free", "cached", "held")}
    assert slots["held"] == 0
    assert slots["free"] + slots["cached"] == 1400


def test_each_series_of_ours_is_there_with_its_labels(crowded: Server) -> None:
    now = scrape(crowded)
    for metric in registry.METRICS:
        for series in metric.series:
            labels = [dict(said) for name, said in now if name == series]
            assert labels or metric is registry.MODE_SWITCHES, series
            assert all(set(metric.labels) <= said.keys() for said in labels)


def test_sglang_says_nothing_of_drafts(crowded: Server) -> None:
    """Its figures of speculation took any step for a verification of the widest block."""
    asked = generate_body([5, 6, 7], 30, mode="self_speculation", ignore_eos=True, request={"rid": "no-drafts"})
    said = crowded.post("/generate", asked).json()["meta_info"]
    assert [name for name in said if name.startswith("spec_")] == []
    now = scrape(crowded)
    drafts = ("sglang:spec_verify_calls_total", "sglang:spec_accept_length", "sglang:spec_accept_rate")
    assert [total(now, name) for name in drafts] == [0, 0, 0]
    loads = requests.get(f"{crowded.url}/v1/loads", timeout=30).json()["loads"]
    assert [load.get("speculative") for load in loads] == [None]
    state = requests.get(f"{crowded.url}/server_info", timeout=30).json()["internal_states"][0]
    assert "avg_spec_accept_length" not in state
    log = crowded.log.read_text()
    assert "accept len" not in log
    assert re.findall(r"rid=no-drafts, .* output_len=(\d+)", log) == ["30"]


def test_nothing_is_registered_unless_asked_for(trained: Server) -> None:
    trained.generate([5, 6, 7], 4)
    assert "dlm_" not in requests.get(f"{trained.url}/metrics", timeout=30).text
