"""What is counted of a request, step by step."""

from __future__ import annotations

import pytest

from dlm_serve.decoding import (
    BlockCommit,
    CausalCommit,
    Commit,
    DecodePlan,
    Mode,
    ModeSettings,
    PromptMask,
    RequestState,
    WindowAlgorithm,
    WindowCommit,
)
from dlm_serve.metrics import registry
from dlm_serve.metrics.counts import Counts
from dlm_serve.metrics.meter import Meter
from dlm_serve.metrics.registry import Outcome

CAUSAL, BLOCK, WINDOW = CausalCommit(), BlockCommit(PromptMask.BLOCK_CAUSAL), WindowCommit()
DRAFTS = ModeSettings(Mode.SELF_SPECULATION, 4, 0.0)
TOKENS = ModeSettings(Mode.AUTOREGRESSIVE, 1)
DIFFUSION = ModeSettings(Mode.DIFFUSION, 4, 0.9)
WINDOWS = ModeSettings(Mode.DIFFUSION, 4, 0.9, algorithm=WindowAlgorithm.SELF_SPECULATIVE)


def counted(commit: Commit, settings: ModeSettings, num_extend_forwards: int, emitted: list[int]) -> Counts:
    """What is counted of a request whose EXTEND call ran so many forwards, and whose steps emitted these tokens."""
    counts, meter, state = Counts(), Meter(), RequestState(DecodePlan((settings,)))
    state.begin(0)
    state.num_extend_forwards = num_extend_forwards
    meter.count_extend(counts, state, commit)
    meter.count_answer(counts, state, 1)
    for num_emitted in emitted:
        state.end_step(num_emitted)
        if num_emitted:
            meter.count_block(counts, state, commit)
            meter.count_answer(counts, state, state.num_tokens + num_emitted)
    meter.count_block(counts, state, commit)
    meter.count_end(counts, state, Outcome.LENGTH)
    assert counts.total(registry.FORWARD_PASSES) == state.nfe
    assert counts.total(registry.TOKENS) == 1 + sum(emitted)
    return counts


def values(counts: Counts, metric: registry.Metric, *labels: str) -> dict[float, int]:
    """How often each value was observed, where every value is a bound of a bucket."""
    found = counts.distributions.get((metric, labels))
    buckets = zip(metric.buckets, found.buckets, strict=False) if found else ()
    return {bound: number for bound, number in buckets if number}


@pytest.mark.parametrize(
    ("commit", "settings", "num_extend", "emitted", "phases", "denoise_steps", "accepted"),
    [
        pytest.param(CAUSAL, TOKENS, 0, [1, 1, 1], {"decode": 3}, {}, {}, id="autoregressive"),
        pytest.param(
            CAUSAL, DRAFTS, 0, [0, 3, 0, 1, 0, 3], {"draft": 3, "verify": 3}, {1: 3}, {1: 1, 3: 2}, id="drafts"
        ),
        pytest.param(CAUSAL, DIFFUSION, 0, [0, 0, 4, 0, 4], {"denoise": 3, "commit": 2}, {1: 1, 2: 1}, {}, id="causal"),
        pytest.param(CAUSAL, DRAFTS, 0, [0, 3, 0], {"draft": 2, "verify": 1}, {1: 1}, {3: 1}, id="aborted draft"),
        pytest.param(BLOCK, DIFFUSION, 1, [3, 0], {"denoise": 2, "commit": 1}, {1: 1}, {}, id="aborted block"),
        pytest.param(CAUSAL, DIFFUSION, 2, [3, 0, 4], {"denoise": 3, "commit": 2}, {1: 1, 2: 1}, {}, id="resumed"),
        pytest.param(
            BLOCK, DIFFUSION, 3, [3, 0, 4, 0, 4], {"denoise": 6, "commit": 2}, {1: 1, 2: 1, 3: 1}, {}, id="block"
        ),
        pytest.param(WINDOW, DIFFUSION, 1, [2, 1, 3], {"denoise": 4}, {1: 4}, {}, id="windows"),
        pytest.param(WINDOW, WINDOWS, 2, [2, 1], {"denoise": 2, "verify": 2}, {2: 1}, {}, id="draft windows"),
    ],
)
def test_phases_and_blocks(
    commit: Commit,
    settings: ModeSettings,
    num_extend: int,
    emitted: list[int],
    phases: dict[str, int],
    denoise_steps: dict[float, int],
    accepted: dict[float, int],
) -> None:
    counts = counted(commit, settings, num_extend, emitted)
    found = {labels[1]: number for (metric, labels), number in counts.totals.items() if len(labels) == 2}
    assert found == {**phases, "length": 1}
    assert values(counts, registry.DENOISE_STEPS, settings.mode) == denoise_steps
    assert values(counts, registry.ACCEPTANCE_LENGTH) == accepted


def test_steps_that_only_flush_are_no_forwards() -> None:
    counts, meter, state = Counts(), Meter(), RequestState(DecodePlan((DIFFUSION,)))
    state.num_extend_forwards = 2
    state.end_extend([5, 6], 2)
    meter.count_extend(counts, state, BLOCK)
    state.end_step(2)
    meter.count_block(counts, state, BLOCK)
    assert counts.totals == {(registry.FORWARD_PASSES, ("diffusion", "denoise")): 2}


def test_switches_count_from_the_mode_before_to_the_one_after() -> None:
    counts, meter, state = Counts(), Meter(), RequestState(DecodePlan((DRAFTS, TOKENS)))
    state.begin(0)
    state.go_on_as(None)
    state.offer(0, 2)
    meter.count_answer(counts, state, 1)
    meter.count_answer(counts, state, 2)
    assert counts.totals[registry.MODE_SWITCHES, ("self_speculation", "autoregressive")] == 1 == state.num_switches


def test_values_fall_into_the_first_bucket_that_holds_them() -> None:
    counts, metric = Counts(), registry.ACCEPTANCE_LENGTH
    for value in (1, 8, 9, 12, 65):
        counts.observe(metric, value)
    found = counts.distributions[metric, ()]
    assert [(bound, n) for bound, n in zip([*metric.buckets, None], found.buckets, strict=True) if n] == [
        (1, 1),
        (8, 1),
        (12, 2),
        (None, 1),
    ]
    assert found.total == 95


def test_a_draft_that_a_retraction_lost_stays_a_draft() -> None:
    counts, meter, state = Counts(), Meter(), RequestState(DecodePlan((DRAFTS,)))
    for emitted in ([0, 4, 0], [0, 2]):
        state.begin(state.num_steps)
        meter.count_extend(counts, state, CAUSAL)
        for num_emitted in emitted:
            state.end_step(num_emitted)
            if num_emitted:
                meter.count_block(counts, state, CAUSAL)
    found = {labels[1]: number for (_, labels), number in counts.totals.items()}
    assert found == {"draft": 3, "verify": 2}
    assert values(counts, registry.DENOISE_STEPS, Mode.SELF_SPECULATION) == {1: 2}
