"""Rows that are driven through `attention_spec` and `advance` give what three plain decoding loops give.

The loops below are written from the description of the reference implementation: batch 1, lists and
floats. Both they and the rows ask the same fake model, a pure function of the tokens it may see.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Final

import pytest
import torch
from dlm_kernels.sample_token.reference import gumbel_noise

from dlm_serve.decoding import (
    AttentionSpec,
    CausalCommit,
    ConcreteMode,
    DecodePlan,
    Mode,
    ModeSettings,
    Phase,
    Prediction,
    RequestState,
    RowOptions,
    Rows,
    TokenChoice,
)
from dlm_serve.decoding.rows import MAX_STOP_IDS

COMMIT = CausalCommit()

VOCAB_SIZE, MASK, STOP, OTHER_STOP = 23, 5, 7, 11
CHOICE = TokenChoice(MASK)
TABLE_WIDTH = 32
STOPS = (STOP, OTHER_STOP)


class FakeModel:
    """Logits from distance-weighted sums of token embeddings.

    The prediction for a position leans on the tokens before it, so drafts are often right; what
    follows it, the adapter and the mask kind all shift it, so they are often wrong. The mask and the
    stop ids are likely on purpose.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.embedding, self.head, self.adapter = random(VOCAB_SIZE, 8), random(8, VOCAB_SIZE), random(8, VOCAB_SIZE)
        self.of_position = random(257, VOCAB_SIZE)
        self.embedding[MASK] *= 0.1

    def __call__(self, tokens: Sequence[int], start: int, *, causal: bool, lora: bool = False) -> torch.Tensor:
        """Logits [len(tokens) - start, V] float32 of the tokens from `start` on, behind those before."""
        return self._logits(tuple(tokens), start, causal, lora)

    @cache  # noqa: B019  # one model for the whole file
    def _logits(self, tokens: tuple[int, ...], start: int, causal: bool, lora: bool) -> torch.Tensor:
        targets = torch.arange(start, len(tokens))[:, None] + int(causal)
        distance = targets - torch.arange(len(tokens))[None, :]
        right = torch.zeros(()) if causal else 0.3 ** (-distance).clamp(min=0).double() * 0.3
        weight = torch.where(distance >= 1, 0.5 ** (distance - 1).clamp(min=0).double(), right.double())
        hidden = 1.4 * weight @ self.embedding[list(tokens)]
        logits = hidden @ (self.head + (0.2 * self.adapter if lora else 0.0)) + self.of_position[targets[:, 0]]
        logits[:, MASK] += 2.0
        logits[:, list(STOPS)] -= 2.0
        return logits.float()


MODEL = FakeModel()


@dataclass(frozen=True)
class Ask:
    """One request."""

    mode: ConcreteMode
    block_length: int = 1
    threshold: float | None = None
    steps: int | None = None
    convergence_threshold: float | None = None
    max_new_tokens: int = 40
    stop_ids: tuple[int, ...] = STOPS
    temperature: float = 0.0
    seed: int = 0
    prompt: tuple[int, ...] = (1, 2, 3)

    @property
    def step_limit(self) -> int:
        """Most denoising forwards per block."""
        return self.block_length if self.steps is None else self.steps

    @property
    def options(self) -> RowOptions:
        settings = ModeSettings(
            self.mode, self.block_length, self.threshold, self.step_limit, self.convergence_threshold
        )
        options = COMMIT.row_options(settings, self.seed, self.stop_ids, VOCAB_SIZE)
        if not self.temperature:
            return options
        return replace(options, temperature=self.temperature, top_k=VOCAB_SIZE)


@dataclass
class Answer:
    """Output ids and forwards after the prefill; `runs` are the separate emissions that made the ids."""

    ids: list[int] = field(default_factory=list)
    nfe: int = 0
    runs: list[list[int]] = field(default_factory=list)


# --- The oracle: three loops over one request ---


def choose(logits: torch.Tensor, position: int, ask: Ask) -> int:
    """The best token that is not the mask, after Gumbel noise where the request samples."""
    scores: list[float] = logits.tolist()
    if ask.temperature > 0:
        noise = gumbel_noise(torch.tensor([ask.seed]), torch.tensor([position]), VOCAB_SIZE)[0].tolist()
        scores = [score / ask.temperature + extra for score, extra in zip(scores, noise, strict=True)]
    return max((token for token in range(VOCAB_SIZE) if token != MASK), key=scores.__getitem__)


def probabilities(logits: torch.Tensor) -> list[float]:
    weights = [math.exp(logit) for logit in logits.tolist()]
    total = sum(weights)
    return [weight / total for weight in weights]


def entropy(logits: torch.Tensor) -> float:
    return -sum(p * math.log(p) for p in probabilities(logits))


def cut(ids: Sequence[int], ask: Ask) -> tuple[list[int], bool]:
    """`ids` up to the first stop id or the length limit, and whether the request ends there."""
    for index, token in enumerate(ids[: ask.max_new_tokens]):
        if token in ask.stop_ids:
            return list(ids[: index + 1]), True
    return list(ids[: ask.max_new_tokens]), len(ids) >= ask.max_new_tokens


def first_token(ask: Ask) -> int:
    """What the prefill predicts."""
    return choose(MODEL(ask.prompt, len(ask.prompt) - 1, causal=True)[0], len(ask.prompt), ask)


def autoregress(ask: Ask) -> Answer:
    ids = [first_token(ask)]
    nfe = 0
    while not cut(ids, ask)[1]:
        seen = [*ask.prompt, *ids]
        ids.append(choose(MODEL(seen, len(seen) - 1, causal=True)[0], len(seen), ask))
        nfe += 1
    return Answer(ids, nfe)


def fill(block: list[int], context: list[int], step: int, previous: float | None, ask: Ask, *, lora: bool) -> float:
    """One denoising forward: fixes some masks of `block` in place and returns their mean entropy before."""
    masked = [i for i, token in enumerate(block) if token == MASK]
    logits = MODEL([*context, *block], len(context), causal=False, lora=lora)
    guess = {i: choose(logits[i], len(context) + i, ask) for i in masked}
    confidence = {i: probabilities(logits[i])[guess[i]] for i in masked}
    ranked = sorted(masked, key=confidence.__getitem__, reverse=True)
    mean_entropy = sum(entropy(logits[i]) for i in masked) / len(masked)
    converged = (
        ask.convergence_threshold is not None
        and previous is not None
        and abs(mean_entropy - previous) < ask.convergence_threshold
    )
    if step + 1 == ask.step_limit or converged:
        fixed = ranked
    elif ask.threshold is None:
        evenly, remainder = divmod(len(block) - 1, ask.step_limit)
        fixed = ranked[: evenly + (1 if step < remainder else 0)]
    else:
        fixed = ranked[:1] + [i for i in ranked[1:] if confidence[i] >= ask.threshold]
    for i in fixed:
        block[i] = guess[i]
    return mean_entropy


def known_to_a_stop(block: Sequence[int], ask: Ask) -> bool:
    """Whether a stop id stands in the block with no mask before it."""
    for token in block:
        if token == MASK or token in ask.stop_ids:
            return token != MASK
    return False


def diffuse(ask: Ask) -> Answer:
    context, ids, nfe = list(ask.prompt), list[int](), 0
    seed = first_token(ask)
    while not cut(ids, ask)[1]:
        block = [seed] + [MASK] * (ask.block_length - 1)
        mean_entropy: float | None = None
        for step in range(ask.step_limit):
            if MASK not in block:
                break
            mean_entropy = fill(block, context, step, mean_entropy, ask, lora=False)
            nfe += 1
            if known_to_a_stop(block, ask):
                break
        logits = MODEL([*context, *block], len(context), causal=True)
        nfe += 1
        context += block
        ids += block
        seed = choose(logits[-1], len(context), ask)
    return Answer(cut(ids, ask)[0], nfe)


def speculate(ask: Ask) -> Answer:
    context, ids, nfe = list(ask.prompt), [first_token(ask)], 0
    while not cut(ids, ask)[1]:
        block = [ids[-1]] + [MASK] * (ask.block_length - 1)
        mean_entropy: float | None = None
        for step in itertools.count():
            if MASK not in block:
                break
            mean_entropy = fill(block, context, step, mean_entropy, ask, lora=True)
            nfe += 1
        logits = MODEL([*context, *block], len(context), causal=True)
        nfe += 1
        chosen = [choose(row, len(context) + 1 + i, ask) for i, row in enumerate(logits)]
        accepted = 1
        while accepted < len(block) and chosen[accepted - 1] == block[accepted]:
            accepted += 1
        context += block[:accepted]
        ids += chosen[:accepted]
    return Answer(cut(ids, ask)[0], nfe)


ORACLES = {Mode.AUTOREGRESSIVE: autoregress, Mode.DIFFUSION: diffuse, Mode.SELF_SPECULATION: speculate}


@cache
def expected(ask: Ask) -> Answer:
    """The oracle's answer, with forwards as we count them.

    `diffuse` finds a stop id, or the end, only after the block that starts with it. A request that
    ends on the first token of a block is done before: one denoising forward and one commit less.
    Blocks of one token have no denoising forward, and their last is never run.
    """
    answer = ORACLES[ask.mode](ask)
    if ask.mode is Mode.DIFFUSION:
        ends_on_seed = answer.ids[-1] in ask.stop_ids and (len(answer.ids) - 1) % ask.block_length == 0
        answer.nfe -= 1 if ask.block_length == 1 else 2 if ends_on_seed else 0
    return answer


# --- The subject: rows, batched ---


def forward(rows: Rows, contexts: Sequence[Sequence[int]], spec: AttentionSpec) -> torch.Tensor:
    """Logits [B, W, V] of the fake model. Those of padding cry for a stop id with full confidence."""
    logits = torch.zeros(len(contexts), rows.width, VOCAB_SIZE)
    logits[:, :, STOP] = 80.0
    for row, context in enumerate(contexts):
        length = int(rows.new_len[row])
        tokens = [*context, *rows.tokens[row, :length].tolist()]
        causal, lora = bool(spec.shift[row, 0]), bool(spec.lora_on[row, 0])
        whole = torch.ones(length, length, dtype=torch.bool)
        assert torch.equal(spec.visible.mask()[row, :length, :length], whole.tril() if causal else whole)
        logits[row, :length] = MODEL(tokens, len(context), causal=causal, lora=lora)
    return logits


def predicted(rows: Rows, contexts: Sequence[Sequence[int]]) -> Prediction:
    spec = COMMIT.attention_spec(rows, torch.tensor([len(context) for context in contexts]), MASK)
    logits = forward(rows, contexts, spec)
    return CHOICE.predict(logits, spec.predicted_positions, rows)


def serve(asks: Sequence[Ask]) -> list[Answer]:
    """All requests in one batch; each leaves it when it has ended."""
    answers = [Answer([first_token(ask)]) for ask in asks]
    contexts = [list(ask.prompt) for ask in asks]
    pending = torch.tensor([answer.ids[0] for answer in answers])
    table = Rows.of([ask.options for ask in asks], TABLE_WIDTH).start_block(pending, MASK)
    while live := [i for i, ask in enumerate(asks) if not cut(answers[i].ids, ask)[1]]:
        indices = torch.tensor(live)
        rows = table.gather(indices, max(asks[i].block_length for i in live))
        prediction = predicted(rows, [contexts[i] for i in live])
        after, output = COMMIT.advance(rows, prediction, MASK)
        table.scatter_(indices, after)
        for row, i in enumerate(live):
            length = int(output.lens[row])
            run = output.tokens[row, :length].tolist()
            answers[i].nfe += 1
            answers[i].runs += [run] if run else []
            answers[i].ids += run
            contexts[i] += rows.tokens[row, :length].tolist()
    for answer, ask in zip(answers, asks, strict=True):
        answer.ids = cut(answer.ids, ask)[0]
    return answers


PROMPTS = ((1, 2, 3), (4,), (9, STOP, 8, MASK, 2))


def asks_of(base: Ask) -> list[Ask]:
    """`base` for several prompts: greedy to the length limit, greedy to a stop id, sampled to a stop id."""
    return [
        replace(base, prompt=prompt, stop_ids=stop_ids, temperature=temperature, seed=seed)
        for seed, prompt in enumerate(PROMPTS, start=2**36)
        for stop_ids, temperature in (((), 0.0), (STOPS, 0.0), (STOPS, 0.8))
    ]


AR: Final = Mode.AUTOREGRESSIVE
DIFFUSION: Final = Mode.DIFFUSION
SPECULATION: Final = Mode.SELF_SPECULATION
CASES = {
    "ar": Ask(AR, max_new_tokens=17),
    "ar-one-token": Ask(AR, max_new_tokens=1),
    "diffusion-1": Ask(DIFFUSION, 1, 0.9, max_new_tokens=9),
    "diffusion-1-schedule": Ask(DIFFUSION, 1, max_new_tokens=9),
    "diffusion-2": Ask(DIFFUSION, 2, 0.9, max_new_tokens=20),
    "diffusion-5-threshold-0": Ask(DIFFUSION, 5, 0.0, max_new_tokens=20),
    "diffusion-5-threshold-0.4": Ask(DIFFUSION, 5, 0.4, max_new_tokens=20),
    "diffusion-8-threshold-0.3": Ask(DIFFUSION, 8, 0.3, max_new_tokens=24),
    "diffusion-8-threshold-0.6": Ask(DIFFUSION, 8, 0.6, max_new_tokens=24),
    "diffusion-8-threshold-1": Ask(DIFFUSION, 8, 1.0, max_new_tokens=16),
    "diffusion-32-threshold-0.3": Ask(DIFFUSION, 32, 0.3, max_new_tokens=32),
    "diffusion-2-schedule": Ask(DIFFUSION, 2, max_new_tokens=10),
    "diffusion-8-schedule": Ask(DIFFUSION, 8, max_new_tokens=16),
    "diffusion-8-schedule-1": Ask(DIFFUSION, 8, steps=1, max_new_tokens=24),
    "diffusion-8-schedule-3": Ask(DIFFUSION, 8, steps=3, max_new_tokens=24),
    "diffusion-8-schedule-4": Ask(DIFFUSION, 8, steps=4, max_new_tokens=24),
    "diffusion-8-schedule-7": Ask(DIFFUSION, 8, steps=7, max_new_tokens=24),
    "diffusion-32-schedule-6": Ask(DIFFUSION, 32, steps=6, max_new_tokens=32),
    "diffusion-8-both-3": Ask(DIFFUSION, 8, 0.6, steps=3, max_new_tokens=24),
    "diffusion-8-both-1": Ask(DIFFUSION, 8, 0.9, steps=1, max_new_tokens=24),
    "diffusion-8-converges": Ask(DIFFUSION, 8, 0.9, convergence_threshold=0.1, max_new_tokens=24),
    "diffusion-8-converges-at-once": Ask(DIFFUSION, 8, 0.9, convergence_threshold=99.0, max_new_tokens=24),
    "diffusion-8-never-converges": Ask(DIFFUSION, 8, 0.9, convergence_threshold=0.0, max_new_tokens=16),
    "diffusion-32-schedule-converges": Ask(DIFFUSION, 32, steps=16, convergence_threshold=0.03, max_new_tokens=32),
    "speculation-1": Ask(SPECULATION, 1, 0.0, max_new_tokens=9),
    "speculation-2": Ask(SPECULATION, 2, 0.0, max_new_tokens=17),
    "speculation-5": Ask(SPECULATION, 5, 0.0, max_new_tokens=23),
    "speculation-8": Ask(SPECULATION, 8, 0.0, max_new_tokens=24),
    "speculation-32": Ask(SPECULATION, 32, 0.0, max_new_tokens=24),
    "speculation-8-threshold-0.4": Ask(SPECULATION, 8, 0.4, max_new_tokens=24),
    "speculation-8-threshold-1": Ask(SPECULATION, 8, 1.0, max_new_tokens=16),
    "speculation-8-steps-2": Ask(SPECULATION, 8, 0.6, steps=2, max_new_tokens=24),
    "speculation-8-converges": Ask(SPECULATION, 8, 0.9, convergence_threshold=0.2, max_new_tokens=24),
}


@cache
def served(case: str) -> list[tuple[Ask, Answer]]:
    """The requests of a case with their answers, served in one batch."""
    asks = asks_of(CASES[case])
    return list(zip(asks, serve(asks), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_rows_decode_as_the_reference_loops(case: str) -> None:
    for ask, answer in served(case):
        wanted = expected(ask)
        assert (answer.ids, answer.nfe) == (wanted.ids, wanted.nfe), ask


@pytest.mark.parametrize("case", CASES)
def test_a_request_alone_decodes_as_the_reference_loops(case: str) -> None:
    """Greedy, so that the batch is greedy throughout and as wide as its only row."""
    ask = asks_of(CASES[case])[4]
    (answer,), wanted = serve([ask]), expected(ask)
    assert (answer.ids, answer.nfe) == (wanted.ids, wanted.nfe)


@pytest.mark.parametrize("offset", [0, 4, 8])
def test_a_batch_of_all_kinds_decodes_as_each_request_alone(offset: int) -> None:
    """Modes, block lengths, thresholds, prompts and ends differ from row to row."""
    asks = [asks_of(base)[(2 * i + offset) % 9] for i, base in enumerate(CASES.values())]
    for ask, answer in zip(asks, serve(asks), strict=True):
        wanted = expected(ask)
        assert (answer.ids, answer.nfe) == (wanted.ids, wanted.nfe), ask


def test_the_cases_reach_what_they_are_for() -> None:
    """Without this, a fake model that never stops, or whose drafts never hold, would prove little."""
    answers = {ask: answer for case in CASES for ask, answer in served(case)}
    for mode in (AR, DIFFUSION, SPECULATION):
        ends = {answer.ids[-1] in STOPS for ask, answer in answers.items() if ask.mode is mode and ask.stop_ids}
        assert ends == {True, False}, mode
    diffused = [a for a in answers if a.mode is DIFFUSION and a.block_length == 8 and a.stop_ids]
    assert {(len(answers[a].ids) - 1) % 8 == 0 and answers[a].ids[-1] in STOPS for a in diffused} == {True, False}
    accepted = {len(run) for ask, answer in answers.items() if ask.mode is SPECULATION for run in answer.runs}
    assert {1, 2, 3, 4} <= accepted
    unlimited = {t: asks_of(CASES[f"diffusion-8-threshold-{t}"])[::3] for t in (0.3, 0.6)}
    forwards = {t: sum(answers[ask].nfe for ask in asks) for t, asks in unlimited.items()}
    assert forwards[0.3] < forwards[0.6] < sum(ask.max_new_tokens for ask in unlimited[0.6])
    raw = MODEL(PROMPTS[0], 0, causal=False).argmax(-1).tolist() + MODEL(PROMPTS[2], 0, causal=True).argmax(-1).tolist()
    assert MASK in raw, "the mask must be tempting"


@pytest.mark.parametrize("case", CASES)
def test_the_mask_is_never_emitted(case: str) -> None:
    for _, answer in served(case):
        assert MASK not in answer.ids
        assert all(MASK not in run for run in answer.runs)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("diffusion")])
def test_diffusion_emits_nothing_past_a_stop_id(case: str) -> None:
    """Behind a stop id there may be masks. Verified tokens behind one are sound, and the host cuts them."""
    for ask, answer in served(case):
        assert all(token not in ask.stop_ids for run in answer.runs for token in run[:-1])


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("speculation")])
def test_self_speculation_gives_the_autoregressive_answer(case: str) -> None:
    """Seeded sampling included: the noise of a position is the same in both modes."""
    for ask, answer in served(case):
        assert answer.ids == autoregress(replace(ask, mode=AR)).ids


@pytest.mark.parametrize("case", ["diffusion-8-threshold-0.6", "diffusion-8-schedule-3", "speculation-8", "ar"])
def test_a_shorter_answer_is_a_prefix_of_the_longer_one(case: str) -> None:
    asks = [replace(CASES[case], max_new_tokens=limit, stop_ids=()) for limit in range(1, 25)]
    *shorter, longest = serve(asks)
    assert [answer.ids for answer in shorter] == [longest.ids[:limit] for limit in range(1, 24)]


# --- One step at a time ---


def rows_in(phase: Phase, blocks: Sequence[Sequence[int]], width: int, **changes: object) -> Rows:
    """Rows in the middle of a block, with `blocks` as their tokens."""
    asked = {"mode": DIFFUSION, "block_length": len(blocks[0]), "threshold": 0.9, "steps": len(blocks[0]), **changes}
    options = COMMIT.row_options(ModeSettings(**asked), 0, STOPS, VOCAB_SIZE)  # type: ignore[arg-type]
    made = Rows.of([options for _ in blocks], width)
    made = made.start_block(torch.zeros(len(blocks), dtype=torch.int64), MASK)
    for row, block in enumerate(blocks):
        made.tokens[row, : len(block)] = torch.tensor(block)
        made.new_len[row] = len(block)
    return made.replace(phase=torch.full_like(made.phase, int(phase)))


def prediction_of(
    ids: Sequence[Sequence[int]],
    confidence: Sequence[Sequence[float]] | None = None,
    entropies: Sequence[Sequence[float]] | None = None,
) -> Prediction:
    zeros = torch.zeros(len(ids), len(ids[0]))
    return Prediction(
        torch.tensor(ids),
        zeros if confidence is None else torch.tensor(confidence),
        zeros if entropies is None else torch.tensor(entropies),
        torch.tensor(ids),
    )


@pytest.mark.parametrize(
    ("mode", "block_length", "phase"),
    [
        (AR, 1, Phase.DECODE),
        (DIFFUSION, 1, Phase.COMMIT),
        (DIFFUSION, 2, Phase.DENOISE),
        (SPECULATION, 1, Phase.VERIFY),
        (SPECULATION, 2, Phase.DRAFT),
    ],
)
def test_a_block_starts_in_its_first_phase(mode: ConcreteMode, block_length: int, phase: Phase) -> None:
    """A block of one token has nothing to denoise."""
    ask = Ask(mode, block_length, 0.5)
    rows = Rows.of([ask.options], 4).start_block(torch.tensor([9]), MASK)
    assert rows.phase.tolist() == [phase]
    assert rows.tokens.tolist() == [[9, MASK, MASK, MASK]]
    assert rows.new_len.tolist() == [block_length]
    assert rows.step.tolist() == [0]
    assert rows.mean_entropy.isnan().all()


@pytest.mark.parametrize(
    ("phase", "is_causal", "keeps_kv", "shift", "lora_on"),
    [
        (Phase.DECODE, True, True, 1, False),
        (Phase.DENOISE, False, False, 0, False),
        (Phase.DRAFT, False, False, 0, True),
        (Phase.VERIFY, True, True, 1, False),
        (Phase.COMMIT, True, True, 1, False),
    ],
)
def test_attention_spec_of_each_phase(phase: Phase, is_causal: bool, keeps_kv: bool, shift: int, lora_on: bool) -> None:
    spec = COMMIT.attention_spec(rows_in(phase, [[1, 2, 3]], width=5), torch.tensor([20]), MASK)
    real = torch.arange(5) < 3
    assert torch.equal(spec.visible.mask()[0], real.expand(5, 5).tril() if is_causal else real.expand(5, 5))
    assert spec.kept.tolist() == [[keeps_kv] * 3 + [False] * 2]
    assert spec.prefix_lens.tolist() == [20]
    assert spec.positions.tolist() == [[20, 21, 22, 23, 24]]
    assert spec.predicted_positions.tolist() == [[20 + shift + i for i in range(5)]]
    assert spec.shift.tolist() == [[shift] * 5]
    assert spec.lora_on.tolist() == [[lora_on] * 5]


@pytest.mark.parametrize(
    ("block", "ids", "emitted"),
    [
        ([1, 2, 3, 4], [9, 9, 9, 9], [9]),
        ([1, 2, 3, 4], [2, 9, 9, 9], [2, 9]),
        ([1, 2, 3, 4], [2, 9, 4, 6], [2, 9]),
        ([1, 2, 3, 4], [2, 3, 4, 6], [2, 3, 4, 6]),
        ([1], [9, 0, 0, 0], [9]),
    ],
    ids=["none-holds", "first-holds", "a-gap-ends-it", "all-hold-and-bonus", "block-of-one"],
)
def test_verify_emits_the_models_own_tokens(block: list[int], ids: list[int], emitted: list[int]) -> None:
    rows = rows_in(Phase.VERIFY, [block], 4, mode=SPECULATION, block_length=4, threshold=0.0)
    after, output = COMMIT.advance(rows, prediction_of([ids]), MASK)
    assert output.tokens[0, : output.lens[0]].tolist() == emitted
    assert after.phase.tolist() == [Phase.DRAFT]
    assert after.tokens.tolist() == [[emitted[-1], MASK, MASK, MASK]]
    assert after.new_len.tolist() == [4], "a new block has its full length again"


def test_verify_never_accepts_padding() -> None:
    """Predictions that happen to equal what lies in the padding do not count."""
    rows = rows_in(Phase.VERIFY, [[1, 2]], 4, mode=SPECULATION, threshold=0.0)
    _, output = COMMIT.advance(rows, prediction_of([[2, MASK, MASK, MASK]]), MASK)
    assert output.lens.tolist() == [2]


@pytest.mark.parametrize(
    ("block", "emitted"),
    [
        ([1, 2, 3, 4], [2, 3, 4, 9]),
        ([1, 2, STOP, MASK], [2, STOP]),
        ([1, STOP, MASK, MASK], [STOP]),
        ([1, 2, 3, STOP], [2, 3, STOP]),
        ([1, OTHER_STOP, 2, STOP], [OTHER_STOP]),
        ([1], [9]),
    ],
    ids=["whole", "to-the-stop", "stop-at-once", "stop-last", "first-of-two-stops", "block-of-one"],
)
def test_commit_emits_the_block_behind_its_first_token(block: list[int], emitted: list[int]) -> None:
    ids = [[9 if i == len(block) - 1 else 0 for i in range(5)]]
    _, output = COMMIT.advance(rows_in(Phase.COMMIT, [block], 5), prediction_of(ids), MASK)
    assert output.tokens[0, : output.lens[0]].tolist() == emitted


def test_a_stop_id_in_the_padding_does_not_count() -> None:
    rows = rows_in(Phase.COMMIT, [[1, 2, 3]], 6)
    rows.tokens[:, 5] = STOP
    _, output = COMMIT.advance(rows, prediction_of([[9] * 6]), MASK)
    assert output.tokens[0, : output.lens[0]].tolist() == [2, 3, 9]


@pytest.mark.parametrize("phase", [Phase.DENOISE, Phase.DRAFT])
def test_denoising_emits_nothing_and_fixes_what_is_sure(phase: Phase) -> None:
    rows = rows_in(phase, [[1, MASK, MASK, 4, MASK]], 6, mode=DIFFUSION)
    prediction = prediction_of([[6, 2, 3, 6, 8, STOP]], [[1.0, 0.9, 0.89, 1.0, 0.95, 1.0]])
    after, output = COMMIT.advance(rows, prediction, MASK)
    assert output.lens.tolist() == [0]
    assert after.tokens.tolist() == [[1, 2, MASK, 4, 8, MASK]], "the threshold is inclusive, the known stay"
    assert (after.phase.tolist(), after.step.tolist()) == ([phase], [1])


@pytest.mark.parametrize(
    ("block", "ids", "settles"),
    [
        ([1, MASK, MASK, MASK], [0, STOP, 0, 0], True),
        ([1, 2, MASK, STOP], [0, 0, 3, 0], True),
        ([1, MASK, MASK, MASK], [0, 0, STOP, 0], False),
    ],
    ids=["stop-first", "filled-to-the-stop", "mask-before-the-stop"],
)
def test_denoising_ends_at_a_stop_id_only_when_all_before_it_is_known(
    block: list[int], ids: list[int], settles: bool
) -> None:
    confidence = [1.0 if token else 0.0 for token in ids]
    after, _ = COMMIT.advance(rows_in(Phase.DENOISE, [block], 4), prediction_of([ids], [confidence]), MASK)
    assert after.phase.tolist() == [Phase.COMMIT if settles else Phase.DENOISE]


def test_a_stop_id_does_not_end_a_draft() -> None:
    prediction = prediction_of([[0, STOP, 0, 0]], [[0.0, 1.0, 0.0, 0.0]])
    after, _ = COMMIT.advance(rows_in(Phase.DRAFT, [[1, MASK, MASK, MASK]], 4, mode=SPECULATION), prediction, MASK)
    assert after.phase.tolist() == [Phase.DRAFT]


@pytest.mark.parametrize(
    ("before", "now", "limit", "settles"),
    [
        (2.0, 1.5, 0.6, True),
        (1.5, 2.0, 0.6, True),
        (2.0, 1.5, 0.5, False),
        (2.0, 2.0, 0.0, False),
        (None, 0.0, 9.0, False),
    ],
    ids=["falls", "rises", "limit-excluded", "zero-is-never", "first-step-is-never"],
)
def test_convergence_fixes_the_rest(before: float | None, now: float, limit: float, settles: bool) -> None:
    """The mean is over masks only: the entropy of known tokens and of padding does not count."""
    rows = rows_in(Phase.DENOISE, [[1, 2, MASK, MASK]], 5, convergence_threshold=limit)
    if before is not None:
        rows.mean_entropy[0] = before
    prediction = prediction_of([[0, 0, 3, 4, 0]], entropies=[[50.0, 50.0, now - 0.25, now + 0.25, 50.0]])
    after, _ = COMMIT.advance(rows, prediction, MASK)
    assert after.mean_entropy.tolist() == [now]
    assert after.phase.tolist() == [Phase.COMMIT if settles else Phase.DENOISE]


@pytest.mark.parametrize(
    ("steps", "quotas"),
    [(1, [7]), (2, [4, 3]), (3, [3, 2, 2]), (5, [2, 2, 1, 1, 1]), (7, [1] * 7), (8, [1] * 7)],
)
def test_the_schedule_spreads_masks_evenly_remainder_first(steps: int, quotas: list[int]) -> None:
    rows = rows_in(Phase.DENOISE, [[1] + [MASK] * 7], 8, threshold=None, steps=steps)
    fixed = []
    while rows.phase.tolist() == [Phase.DENOISE]:
        before = int((rows.tokens == MASK).sum())
        rows, _ = COMMIT.advance(rows, prediction_of([[2] * 8], [[0.5] * 8]), MASK)
        fixed.append(before - int((rows.tokens == MASK).sum()))
    assert fixed == quotas


# --- A request that is resumed ---


@pytest.mark.parametrize(
    ("mode", "num_output", "start"), [(DIFFUSION, 0, None), (DIFFUSION, 5, [204]), (SPECULATION, 5, None)]
)
def test_a_block_of_a_resumed_request_starts_with_its_pending_token(
    mode: ConcreteMode, num_output: int, start: list[int] | None
) -> None:
    """What a prefill predicts would stand behind it as in an autoregressive answer. Its KV is written once more."""
    state = RequestState(DecodePlan((ModeSettings(mode, 4),)))
    tokens = [*range(100, 103), *range(200, 200 + num_output)]
    assert COMMIT.known_start(state, tokens, num_prompt=3) == start
    assert COMMIT.is_private(state, is_resumed=num_output > 0) == (start is not None)


# --- The table of rows ---


def numbered(num_rows: int, width: int) -> Rows:
    rows = Rows.of([Ask(DIFFUSION, width, 0.5, seed=row).options for row in range(num_rows)], width)
    rows.tokens.copy_(torch.arange(num_rows * width).view(num_rows, width))
    return rows


def test_of_keeps_the_settings_of_each_row() -> None:
    many = tuple(range(30, 30 + MAX_STOP_IDS + 2))
    rows = Rows.of(
        [
            Ask(DIFFUSION, 8, None, steps=3, seed=-1, stop_ids=many).options,
            Ask(SPECULATION, 4, 0.0, convergence_threshold=0.5, seed=2**62, stop_ids=(STOP,)).options,
        ],
        width=8,
    )
    assert rows.threshold.tolist() == [math.inf, 0.0]
    assert rows.steps.tolist() == [3, 4]
    assert rows.convergence_threshold.tolist() == [0.0, 0.5]
    assert rows.seed.tolist() == [-1, 2**62]
    assert rows.stop_ids.tolist() == [list(many[:MAX_STOP_IDS]), [STOP] + [-1] * (MAX_STOP_IDS - 1)]


def test_gather_copies_rows_and_cuts_columns() -> None:
    table = numbered(4, 6)
    rows = table.gather(torch.tensor([3, 1]), 2)
    assert rows.tokens.tolist() == [[18, 19], [6, 7]]
    assert rows.seed.tolist() == [3, 1]
    rows.tokens.zero_()
    assert table.tokens[1].tolist() == [6, 7, 8, 9, 10, 11]


def test_scatter_writes_rows_and_leaves_the_columns_past_theirs() -> None:
    table, rows = numbered(4, 6), numbered(2, 2)
    rows.tokens.neg_()
    table.scatter_(torch.tensor([3, 1]), rows)
    assert table.tokens[:, :3].tolist() == [[0, 1, 2], [-2, -3, 8], [12, 13, 14], [0, -1, 20]]
    assert table.block_length.tolist() == [6, 2, 6, 2]
    assert table.seed.tolist() == [0, 1, 2, 0]


def test_where_picks_row_by_row() -> None:
    mine, theirs = numbered(3, 2), numbered(3, 2)
    theirs.tokens.neg_()
    theirs.seed.neg_()
    picked = mine.where(torch.tensor([True, False, True]), theirs)
    assert picked.tokens.tolist() == [[0, 1], [-2, -3], [4, 5]]
    assert picked.seed.tolist() == [0, -1, 2]
