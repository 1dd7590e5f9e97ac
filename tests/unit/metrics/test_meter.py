"""What is counted of a request, while it runs and once it has ended."""

from __future__ import annotations

import pytest

from dlm_serve.decoding import (
    AUTOREGRESSIVELY,
    BlockCommit,
    CausalCommit,
    Choice,
    Commit,
    DecodePlan,
    Mode,
    ModeSettings,
    PromptMask,
    RequestState,
    StopRule,
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

EXTEND = -1
"""In place of what a step emits: an EXTEND call, as of a request that is resumed."""


def run(state: RequestState, meter: Meter, commit: Commit, emitted: list[int]) -> None:
    """Let a request take these steps; what is counted meanwhile must only grow."""
    before = meter.counts(commit)
    for num_emitted in emitted:
        if num_emitted == EXTEND:
            state.begin(state.num_steps)
        else:
            state.end_step(num_emitted)
        now = meter.counts(commit)
        assert all(now.totals[key] >= number for key, number in before.totals.items())
        before = now


def counted(commit: Commit, settings: ModeSettings, emitted: list[int]) -> Counts:
    """What is counted of a request that ends behind these steps; an EXTEND call gave its first token."""
    meter, state = Meter(), RequestState(DecodePlan((settings,)))
    state.begin(0)
    state.note_answer(1)
    meter.begin(state)
    run(state, meter, commit, emitted)
    meter.end(state, state.num_tokens, Outcome.LENGTH)
    counts = meter.counts(commit)
    assert total(counts, registry.FORWARD_PASSES) == state.num_steps
    assert total(counts, registry.TOKENS) == state.num_tokens
    return counts


def total(counts: Counts, metric: registry.Metric) -> int:
    """A counter summed over all labels."""
    return sum(number for (found, _), number in counts.totals.items() if found is metric)


def values(counts: Counts, metric: registry.Metric, *labels: str) -> dict[float, int]:
    """How often each value was observed, where every value is a bound of a bucket."""
    found = counts.distributions.get((metric, labels))
    buckets = zip(metric.buckets, found.buckets, strict=False) if found else ()
    return {bound: number for bound, number in buckets if number}


@pytest.mark.parametrize(
    ("commit", "settings", "emitted", "phases", "denoise_steps", "accepted"),
    [
        pytest.param(CAUSAL, TOKENS, [1, 1, 1], {"decode": 3}, {}, {}, id="autoregressive"),
        pytest.param(CAUSAL, DRAFTS, [0, 3, 0, 1, 0, 3], {"draft": 3, "verify": 3}, {1: 3}, {1: 1, 3: 2}, id="drafts"),
        pytest.param(CAUSAL, DRAFTS, [0, 3, 0], {"draft": 2, "verify": 1}, {1: 1}, {3: 1}, id="draft without an end"),
        pytest.param(
            CAUSAL, DRAFTS, [0, 4, 0, EXTEND, 0, 2], {"draft": 3, "verify": 2}, {1: 2}, {2: 1, 4: 1}, id="lost draft"
        ),
        pytest.param(CAUSAL, DIFFUSION, [0, 0, 4, 0, 4], {"denoise": 3, "commit": 2}, {1: 1, 2: 1}, {}, id="causal"),
        pytest.param(BLOCK, DIFFUSION, [0, 3, 0, 0, 4], {"denoise": 4, "commit": 1}, {2: 2}, {}, id="block"),
        pytest.param(BLOCK, DIFFUSION, [3, 0, 0], {"denoise": 2, "commit": 1}, {1: 1}, {}, id="block without an end"),
        pytest.param(
            BLOCK, DIFFUSION, [0, 3, EXTEND, 0, 0, 4], {"denoise": 5}, {2: 1, 3: 1}, {}, id="block that EXTEND commits"
        ),
        pytest.param(
            BLOCK, DIFFUSION, [3, 0, 0, EXTEND, 0, 4], {"denoise": 4, "commit": 1}, {1: 1, 2: 1}, {}, id="lost block"
        ),
        pytest.param(WINDOW, DIFFUSION, [2, 1, 3], {"denoise": 3}, {1: 3}, {}, id="windows"),
        pytest.param(WINDOW, WINDOWS, [2, 1], {"verify": 2}, {}, {}, id="draft windows"),
    ],
)
def test_phases_and_blocks(
    commit: Commit,
    settings: ModeSettings,
    emitted: list[int],
    phases: dict[str, int],
    denoise_steps: dict[float, int],
    accepted: dict[float, int],
) -> None:
    counts = counted(commit, settings, emitted)
    found = {labels[1]: number for (metric, labels), number in counts.totals.items() if len(labels) == 2}
    assert found == {**phases, "length": 1}
    assert values(counts, registry.DENOISE_STEPS, settings.mode) == denoise_steps
    assert values(counts, registry.ACCEPTANCE_LENGTH) == accepted


def test_modes_are_counted_for_what_they_decided() -> None:
    """The token of an EXTEND call is that of the mode it begins; what stands behind the end is nobody's."""
    meter, state = Meter(), RequestState(DecodePlan((DRAFTS, TOKENS)))
    state.begin(0)
    state.note_answer(1)
    meter.begin(state)
    state.go_on_as(None)
    run(state, meter, CAUSAL, [0, 3])
    state.offer(2, 2)
    run(state, meter, CAUSAL, [1, 1])
    state.go_on_as(Choice(Mode.SELF_SPECULATION, 4))
    state.offer(4, 1)
    run(state, meter, CAUSAL, [0, 4])
    meter.end(state, 8, Outcome.STOP)
    assert meter.counts(CAUSAL).report() == {
        "dlm_forward_passes_total": {
            "self_speculation/draft": 2,
            "self_speculation/verify": 2,
            "autoregressive/decode": 2,
        },
        "dlm_tokens_total": {"self_speculation": 6, "autoregressive": 2},
        "dlm_requests_total": {"self_speculation/stop": 1},
        "dlm_mode_switches_total": {"self_speculation/autoregressive": 1, "autoregressive/self_speculation": 1},
    }
    assert {choice: tally.num_tokens for choice, tally in state.tallies.items()} == {
        Choice(Mode.SELF_SPECULATION, 4): 6,
        AUTOREGRESSIVELY: 2,
    }
    assert (state.num_switches, meter.num_decoded) == (2, -2)


def test_what_may_be_taken_back_is_counted_once_the_answer_has_ended() -> None:
    plan = DecodePlan((DIFFUSION,), StopRule.UPSTREAM)
    meter, state = Meter(), RequestState(plan)
    meter.begin(state)
    run(state, meter, BLOCK, [4, 0, 4])
    assert total(meter.counts(BLOCK), registry.TOKENS) == 0
    meter.end(state, 3, Outcome.STOP)
    assert total(meter.counts(BLOCK), registry.TOKENS) == 3


def test_requests_that_end_before_they_run_count_as_requests_alone() -> None:
    meter = Meter()
    meter.end(RequestState(DecodePlan((DRAFTS,))), 0, Outcome.ABORT)
    counts = meter.counts(CAUSAL)
    assert (counts.totals, counts.distributions) == (
        {(registry.REQUESTS, ("self_speculation", "abort")): 1},
        {},
    )


def test_values_fall_into_the_first_bucket_that_holds_them() -> None:
    counts, metric = Counts(), registry.ACCEPTANCE_LENGTH
    for value, times in ((1, 1), (8, 1), (9, 1), (12, 2), (65, 1)):
        counts.observe(metric, value, times=times)
    found = counts.distributions[metric, ()]
    assert [(bound, n) for bound, n in zip([*metric.buckets, None], found.buckets, strict=True) if n] == [
        (1, 1),
        (8, 1),
        (12, 3),
        (None, 1),
    ]
    assert found.total == 107
