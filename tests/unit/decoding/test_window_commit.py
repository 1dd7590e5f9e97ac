"""Driving rows through `attention_spec` and `advance` gives what the reference's loops give, one request at a time.

The loops below are written from the description of the reference: batch 1, lists, the whole sequence in each
forward, the last token repeated as the window's anchor, and a mask that hides the original from the window. Both
they and the rows ask the same fake model, one layer of attention whose weights fall off with distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from dlm_serve.decoding import (
    AttentionSpec,
    DecodePlan,
    Mode,
    ModeSettings,
    Phase,
    Prediction,
    RequestState,
    RowOptions,
    Rows,
    StepOutput,
    TokenChoice,
    WindowCommit,
)
from dlm_serve.decoding.commit.draft_windows import draft_windows, verify

COMMIT = WindowCommit()

VOCAB_SIZE, MASK, NUM_TOKENS = 23, 5, 40
PROMPTS = ((3,), (1, 2), (9, 4, 4, 17, 20, 1, 0), tuple(range(6, 22)))
ALGORITHMS = (("prob_conf", 0.3), ("prob_conf", 0.6), ("prob_conf", 1.0), ("entropy_conf", 0.3), ("entropy_conf", 0.5))


class FakeModel:
    """Logits from tokens, positions and what each query sees."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.embedding = torch.randn(VOCAB_SIZE, 8, generator=generator, dtype=torch.float64)
        self.head = 1.5 * torch.randn(8, VOCAB_SIZE, generator=generator, dtype=torch.float64)
        self.embedding[MASK] *= 0.25

    def __call__(self, tokens: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """[N, V] float32 for `tokens` [N] at `positions` [N], query i seeing key j iff `visible` [N, N]."""
        distance = (positions[:, None] - positions[None, :]).abs()
        weights = torch.where(visible, 0.5 ** distance.double() * torch.cos(distance.double()), 0.0)
        return ((weights @ self.embedding[tokens]) @ self.head).float()


MODEL = FakeModel()


@dataclass(frozen=True)
class Decoded:
    """What a request came to."""

    tokens: list[int]
    num_forwards: int


def window_of(tokens: list[int], block_length: int) -> torch.Tensor:
    """The reference's forward: logits [D, V] of the window behind `tokens`."""
    num = len(tokens)
    sequence = torch.tensor([*tokens, tokens[-1], *[MASK] * (block_length - 1)])
    positions = torch.tensor([*range(num), *range(num - 1, num - 1 + block_length)])
    visible = torch.ones(num + block_length, num + block_length).tril().bool()
    visible[num:, num:] = True
    visible[num:, num - 1] = False
    return MODEL(sequence, positions, visible)[num:]


def choose(logits: torch.Tensor) -> list[int]:
    return logits.index_fill(1, torch.tensor([MASK]), float("-inf")).argmax(-1).tolist()


def reference_confidence(prompt: tuple[int, ...], block_length: int, algorithm: str, threshold: float) -> Decoded:
    """`prob_conf` and `entropy_conf`, until NUM_TOKENS are generated or passed."""
    tokens, num_forwards = list(prompt), 0
    while len(tokens) < len(prompt) + NUM_TOKENS:
        logits = window_of(tokens, block_length)
        num_forwards += 1
        probs, ids = logits.softmax(-1), choose(logits)
        entropy = -(probs * (probs + 1e-9).log()).sum(-1)
        certainty = 1 - entropy / math.log(VOCAB_SIZE)
        confidence = probs.gather(1, torch.tensor(ids)[:, None]).squeeze(1) if algorithm == "prob_conf" else certainty
        run = next((i for i, c in enumerate(confidence.tolist()) if not c > threshold), block_length)
        tokens += ids[: max(run, 1)]
    return Decoded(tokens[len(prompt) :], num_forwards)


def reference_speculative(prompt: tuple[int, ...], block_length: int) -> Decoded:
    """`self_speculative`, until NUM_TOKENS are generated or passed."""
    tokens, num_forwards = list(prompt), 1
    draft = choose(window_of(tokens, block_length))
    while len(tokens) < len(prompt) + NUM_TOKENS:
        rows = [choose(window_of([*tokens, *draft[: r + 1]], block_length)) for r in range(block_length)]
        num_forwards += 1
        num_accepted = 1
        while num_accepted < block_length and draft[num_accepted] == rows[num_accepted - 1][0]:
            num_accepted += 1
        tokens += draft[:num_accepted]
        draft = rows[num_accepted - 1]
    return Decoded(tokens[len(prompt) :], num_forwards)


def settings(block_length: int, algorithm: str = "prob_conf", threshold: float = 0.5) -> RowOptions:
    limit = None if algorithm == "self_speculative" else threshold
    asked = ModeSettings(Mode.DIFFUSION, block_length, limit, algorithm=algorithm)
    return COMMIT.row_options(asked, 0, (), VOCAB_SIZE)


def logits_of(tokens: list[list[int]], rows: Rows, committed: torch.Tensor) -> torch.Tensor:
    """[B, W, V]: each row behind the first `starts` of its request's tokens, seen as its spec says."""
    spec = COMMIT.attention_spec(rows, committed, MASK)
    return torch.stack([_logits_of(tokens[i], rows, spec, i, int(spec.prefix_lens[i])) for i in range(len(tokens))])


def _logits_of(tokens: list[int], rows: Rows, spec: AttentionSpec, i: int, start: int) -> torch.Tensor:
    visible = spec.visible.mask()[i]
    assert not visible[spec.kept[i]].triu(1).any(), "only causal KV may be kept"
    sequence = torch.cat([torch.tensor(tokens[:start], dtype=torch.int64), rows.tokens[i]])
    before = torch.ones(len(sequence), len(sequence)).tril().bool()
    before[start:, start:] = visible
    return MODEL(sequence, torch.arange(len(sequence)), before)[start:]


class Batch:
    """Requests that decode together, each starting with its prompt's last token as the anchor."""

    def __init__(self, prompts: list[tuple[int, ...]], requests: list[RowOptions]) -> None:
        width = max(COMMIT.row_width(request.block_length) for request in requests)
        self.tokens = [list(prompt) for prompt in prompts]
        self.rows = Rows.of(requests, width).start_block(torch.tensor([p[-1] for p in prompts]), MASK)
        self.committed = torch.tensor([len(prompt) - 1 for prompt in prompts])

    def predict(self, rows: Rows | None = None, times: int = 1) -> Prediction:
        rows = self.rows if rows is None else rows
        committed = self.committed.repeat_interleave(times)
        tokens = [request for request in self.tokens for _ in range(times)]
        return TokenChoice(MASK).greedy(logits_of(tokens, rows, committed))

    def step(self) -> None:
        drafts = bool((self.rows.first_phase == Phase.DRAFT).any())
        self.rows, output = self._verified() if drafts else COMMIT.advance(self.rows, self.predict(), MASK)
        for request, emitted, length in zip(self.tokens, output.tokens.tolist(), output.lens.tolist(), strict=True):
            request += emitted[:length]
        self.committed = self.committed + output.lens

    def _verified(self) -> tuple[Rows, StepOutput]:
        number = int(self.rows.block_length.max())
        each = draft_windows(self.rows, number, 2 * number, MASK)
        ids = self.predict(each, number).ids
        return verify(self.rows, ids.view(-1, number, ids.shape[1]), MASK)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("block_length", [1, 2, 4, 8])
@pytest.mark.parametrize(("algorithm", "threshold"), ALGORITHMS)
def test_confident_runs(prompt: tuple[int, ...], block_length: int, algorithm: str, threshold: float) -> None:
    reference = reference_confidence(prompt, block_length, algorithm, threshold)
    batch = Batch([prompt], [settings(block_length, algorithm, threshold)])
    for _ in range(reference.num_forwards):
        batch.step()
    assert batch.tokens[0][len(prompt) :] == reference.tokens


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("block_length", [1, 2, 4, 8])
def test_verified_drafts(prompt: tuple[int, ...], block_length: int) -> None:
    """The reference's tokens in as many forwards; and they are those of one token per window."""
    reference = reference_speculative(prompt, block_length)
    batch = Batch([prompt], [settings(block_length, "self_speculative")])
    for _ in range(reference.num_forwards):
        batch.step()
    assert batch.tokens[0][len(prompt) :] == reference.tokens
    one_by_one = reference_confidence(prompt, block_length, "prob_conf", 1.0)
    assert reference.tokens[:NUM_TOKENS] == one_by_one.tokens


def test_runs_are_of_every_length() -> None:
    """The cases above reach what they are for."""
    lengths = set()
    for algorithm, threshold in ALGORITHMS:
        batch = Batch([PROMPTS[2]], [settings(4, algorithm, threshold)])
        for _ in range(20):
            before = len(batch.tokens[0])
            batch.step()
            lengths.add(len(batch.tokens[0]) - before)
    assert lengths == {1, 2, 3, 4}


def test_batched_as_alone() -> None:
    """Windows of different lengths and algorithms in one forward, wider than some of them need."""
    requests = [settings(2), settings(8, "entropy_conf", 0.4), settings(4, "prob_conf", 0.3), settings(3)]
    together = Batch(list(PROMPTS), requests)
    alone = [Batch([prompt], [request]) for prompt, request in zip(PROMPTS, requests, strict=True)]
    for _ in range(12):
        together.step()
        for one in alone:
            one.step()
    assert together.tokens == [one.tokens[0] for one in alone]


def test_drafts_of_different_lengths_batched_as_alone() -> None:
    requests = [settings(block_length, "self_speculative") for block_length in (2, 8, 4, 3)]
    together = Batch(list(PROMPTS), requests)
    alone = [Batch([prompt], [request]) for prompt, request in zip(PROMPTS, requests, strict=True)]
    for batch in (together, *alone):
        for _ in range(13):
            batch.step()
    assert together.tokens == [one.tokens[0] for one in alone]


@pytest.mark.parametrize("algorithm", ["prob_conf", "self_speculative"])
def test_a_resumed_request_goes_on_as_it_would_have(algorithm: str) -> None:
    """Its newest token is the anchor, wherever it was interrupted."""
    whole = Batch([PROMPTS[2]], [settings(4, algorithm, 0.3)])
    for _ in range(8):
        resumed = Batch([tuple(whole.tokens[0])], [settings(4, algorithm, 0.3)])
        whole.step()
        for _ in range(3):
            resumed.step()
        length = min(len(whole.tokens[0]), len(resumed.tokens[0]))
        assert resumed.tokens[0][:length] == whole.tokens[0][:length]


@pytest.mark.parametrize(
    ("algorithm", "num_output", "last_emitted", "length"),
    [
        ("prob_conf", 0, 0, 5),
        ("prob_conf", 2, 2, 5),
        ("prob_conf", 7, 4, 7),
        ("prob_conf", 7, 1, 10),
        ("self_speculative", 0, 0, 5),
        ("self_speculative", 7, 4, 11),
        ("", 7, 1, 11),
    ],
)
def test_what_has_kv(algorithm: str, num_output: int, last_emitted: int, length: int) -> None:
    """The prompt, and what was accepted before the last step, but never the newest token."""
    asked = ModeSettings(Mode.DIFFUSION, 4, 0.9 if algorithm == "prob_conf" else None, algorithm=algorithm or None)
    state = RequestState(DecodePlan((asked if algorithm else ModeSettings(Mode.AUTOREGRESSIVE, 1),)))
    state.last_emitted = last_emitted
    assert COMMIT.shareable_len(state, 5, 5 + num_output, num_encoded=5, block_size=4) == length


def test_one_token_rows_decode_beside_windows() -> None:
    """A row of the autoregressive mode is its pending token, keeps its KV and predicts the next."""
    rows = Rows.of([COMMIT.row_options(ModeSettings(Mode.AUTOREGRESSIVE, 1), 0, (), VOCAB_SIZE), settings(4)], 8)
    rows = rows.start_block(torch.tensor([7, 9]), MASK)
    spec = COMMIT.attention_spec(rows, torch.tensor([20, 20]), MASK)
    assert spec.visible.mask().sum(2).tolist() == [[1] * 8, [4] * 8]
    assert (spec.kept.sum(1).tolist(), spec.shift.tolist()) == ([1, 0], [[1] * 8] * 2)
    ids = torch.arange(16).view(2, 8) + 10
    after, output = COMMIT.advance(rows, Prediction(ids, torch.ones(2, 8), torch.zeros(2, 8), ids), MASK)
    assert output.lens.tolist() == [1, 4]
    assert after.tokens[0, 0] == 10
    assert (after.new_len.tolist(), after.num_emitted.tolist()) == ([1, 7], [1, 4])


def test_confidence_must_exceed_the_threshold() -> None:
    """Strictly, as in the reference; the first slot is taken in any case."""
    rows = Rows.of([settings(4)], 8).start_block(torch.tensor([7]), MASK)
    ids, entropy = torch.full((1, 8), 9), torch.zeros(1, 8)
    for confidence, accepted in (([0.5] * 8, 1), ([0.1, 0.9, 0.9, 0.9] * 2, 1), ([0.51, 0.51, 0.5, 0.9] * 2, 2)):
        _, output = COMMIT.advance(rows, Prediction(ids, torch.tensor([confidence]), entropy, ids), MASK)
        assert output.lens.tolist() == [accepted]
