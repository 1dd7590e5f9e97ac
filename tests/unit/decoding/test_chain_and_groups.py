"""One-forward self-speculation gives the autoregressive answer, whatever is planned, and drafts from where it stopped.

Rows are driven through `plan_groups`, `lay_out` and `advance` with a fake model: a pure function of the tokens that a
query sees, with their positions, whose oracle asks it for one token at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from dlm_kernels.sample_token.reference import gumbel_noise

from dlm_serve.decoding import Phase, Prediction, RowOptions, Rows, TokenChoice
from dlm_serve.decoding.one_forward import GroupForm, GroupPlan, Layout, advance, lay_out, plan_groups
from dlm_serve.decoding.one_forward.plan import CHOSEN, num_known

VOCAB_SIZE, MASK, STOP = 29, 5, 7
BLOCK_LENGTH = TABLE_WIDTH = 16
CHOICE = TokenChoice(MASK, with_second=True)
WIDTHS = (4, 8, 16, 24, 48)
Plan = Callable[[Rows, int], GroupPlan]


class FakeModel:
    """Logits from distance-weighted sums of token embeddings, different for masks and with the draft adapter."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.embedding, self.head, self.adapter = random(VOCAB_SIZE, 8), random(8, VOCAB_SIZE), random(8, VOCAB_SIZE)
        self.of_position = 7 * random(600, VOCAB_SIZE)
        self.embedding[MASK] *= 0.1

    def __call__(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        seen: torch.Tensor,
        targets: torch.Tensor,
        is_noisy: torch.Tensor,
    ) -> torch.Tensor:
        """Return logits [Q, V] float32 for positions `targets` of queries that see the `seen` [Q, N] of N tokens."""
        distance = targets[:, None] - positions
        before, after = 0.5 ** (distance - 1).clamp(min=0).double(), 0.05 * 0.3 ** (-distance).clamp(min=0).double()
        hidden = (torch.where(distance >= 1, before, after) * seen) @ self.embedding[tokens]
        logits = hidden @ self.head + 0.12 * is_noisy[:, None] * (hidden @ self.adapter) + self.of_position[targets]
        logits[:, STOP] -= 3.0
        return logits.float()


MODEL = FakeModel()


@dataclass(frozen=True)
class Ask:
    """One request."""

    prompt: tuple[int, ...]
    temperature: float = 0.0
    seed: int = 0
    stop_ids: tuple[int, ...] = (STOP,)
    max_new_tokens: int = 32

    @property
    def options(self) -> RowOptions:
        options = RowOptions(Phase.SPECULATE, BLOCK_LENGTH, seed=self.seed, stop_ids=self.stop_ids)
        return replace(options, temperature=self.temperature, top_k=VOCAB_SIZE) if self.temperature else options

    def cut(self, ids: Sequence[int]) -> tuple[list[int], bool]:
        """Return `ids` up to a stop id or the length limit, and whether the answer ends there."""
        for index, token in enumerate(ids[: self.max_new_tokens]):
            if token in self.stop_ids:
                return list(ids[: index + 1]), True
        return list(ids[: self.max_new_tokens]), len(ids) >= self.max_new_tokens


def choose(logits: torch.Tensor, position: int, ask: Ask) -> int:
    scores = logits.clone()
    if ask.temperature:
        noise = gumbel_noise(torch.tensor([ask.seed]), torch.tensor([position]), VOCAB_SIZE)[0]
        scores = logits / ask.temperature + noise
    scores[MASK] = -torch.inf
    return int(scores.argmax())


def next_token(context: Sequence[int], ask: Ask) -> int:
    length = len(context)
    seen = torch.ones(1, length, dtype=torch.bool)
    logits = MODEL(torch.tensor(context), torch.arange(length), seen, torch.tensor([length]), torch.tensor([False]))
    return choose(logits[0], length, ask)


def autoregress(ask: Ask) -> list[int]:
    ids: list[int] = []
    while not ask.cut(ids)[1]:
        ids.append(next_token([*ask.prompt, *ids], ask))
    return ids


ASKS = [
    Ask(prompt, temperature, seed, stop_ids)
    for seed, prompt in enumerate([(1, 2, 3), (4,), (9, STOP, 8, MASK, 2), (21, 20, 28)], start=2**36)
    for temperature, stop_ids in ((0.0, ()), (0.0, (STOP,)), (0.8, (STOP,)))
]
ANSWERS = {ask: autoregress(ask) for ask in ASKS}


def forward(layout: Layout, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the logits [B, W, V] of rows behind their `contexts`; those of padding cry for a stop id."""
    logits = torch.zeros(*layout.tokens.shape, VOCAB_SIZE)
    logits[:, :, STOP] = 80.0
    j = torch.arange(layout.tokens.shape[1])
    for row, context in enumerate(contexts):
        real = torch.nonzero(layout.is_main[row] | layout.is_second[row] | layout.is_noisy[row]).flatten()
        prefix, lo, hi = (bounds[row, real, None] for bounds in (layout.prefix, layout.lo, layout.hi))
        seen = torch.cat(
            [torch.ones(len(real), len(context), dtype=torch.bool), (j < prefix) | ((j >= lo) & (j < hi))], 1
        )
        positions = torch.cat([torch.arange(len(context)), len(context) + layout.offsets[row]])
        targets = positions[len(context) + real] + ~layout.is_noisy[row, real]
        tokens = torch.cat([torch.tensor(context), layout.tokens[row]])
        logits[row, real] = MODEL(tokens, positions, seen, targets, layout.is_noisy[row, real])
    return logits


@dataclass
class Answer:
    """Output ids, and the tokens of each forward."""

    ids: list[int]
    runs: list[int] = field(default_factory=list)
    chosen: list[bool] = field(default_factory=list)
    """Of each draft that begins with what follows a second choice, whether that was right."""


def serve(
    asks: Sequence[Ask], widths: Sequence[int], form: GroupForm = GroupForm.MASKS, plan: Plan | None = None
) -> list[Answer]:
    """Return the answers of all requests in one batch; the `widths` of its forwards take turns."""
    answers = [Answer([next_token(ask.prompt, ask)]) for ask in asks]
    contexts = [list(ask.prompt) for ask in asks]
    pending = torch.tensor([answer.ids[0] for answer in answers])
    table = Rows.of([ask.options for ask in asks], TABLE_WIDTH).start_block(pending, MASK)
    for width in itertools.cycle(widths):
        live = [i for i, ask in enumerate(asks) if not ask.cut(answers[i].ids)[1]]
        if not live:
            break
        indices = torch.tensor(live)
        rows = table.gather(indices, width)
        planned = plan(rows, width) if plan else plan_groups(rows, MASK, form.num_copies)
        layout = lay_out(rows, planned, form, MASK)
        starts, shift = torch.tensor([len(contexts[i]) for i in live]), layout.is_main | layout.is_second
        positions = starts[:, None] + layout.offsets + shift
        prediction = CHOICE.predict(forward(layout, [contexts[i] for i in live]), positions, rows)
        after, output = advance(rows, layout.anchors, prediction, MASK)
        table.scatter_(indices, after)
        for row, i in enumerate(live):
            length = int(output.lens[row])
            answers[i].runs.append(length)
            if rows.draft_confidence[row, 1] == CHOSEN and planned.num_main[row] > 1:
                answers[i].chosen.append(length > 1)
            answers[i].ids += output.tokens[row, :length].tolist()
            contexts[i] += layout.tokens[row, :length].tolist()
    for answer, ask in zip(answers, asks, strict=True):
        answer.ids = ask.cut(answer.ids)[0]
    return answers


@pytest.mark.parametrize("form", GroupForm)
@pytest.mark.parametrize("widths", [(width,) for width in WIDTHS] + [(24, 4, 48, 8)], ids=str)
def test_the_answer_is_the_autoregressive_one(widths: tuple[int, ...], form: GroupForm) -> None:
    answers = serve(ASKS, widths, form)
    assert [answer.ids for answer in answers] == [ANSWERS[ask] for ask in ASKS]
    if min(widths) >= 24:
        tokens = sum(sum(answer.runs) for answer in answers) / sum(len(answer.runs) for answer in answers)
        assert tokens > 2, "drafts must be right often"
        assert min(run for answer in answers for run in answer.runs) == 1, "and wrong at times"
        assert {right for answer in answers for right in answer.chosen} == {True}


def test_a_batch_decodes_as_each_request_alone() -> None:
    for ask, answer in zip(ASKS, serve(ASKS, (24,)), strict=True):
        assert serve([ask], (24,)) == [answer]


def all_stops(rows: Rows, length: int) -> GroupPlan:
    """Return a plan with `length` masks behind every token of chains of at most `length`."""
    num_main = num_known(rows, MASK).clamp(max=length)
    is_main = rows.columns < num_main[:, None]
    return GroupPlan(num_main, torch.where(is_main, length, 0), torch.zeros_like(is_main))


@pytest.mark.parametrize("length", [2, 4, 7])
def test_with_masks_behind_every_stop_it_is_quadratic_decoding(length: int) -> None:
    """`self_spec_generate` of MinistralDiffEncoderModel, from its description: groups of a draft and its masks."""
    for ask in ASKS:
        if ask.stop_ids:
            continue  # chains end at a stop id, where the reference goes on drafting
        context, ids, runs = list(ask.prompt), [next_token(ask.prompt, ask)], []
        draft = ids[-1:]
        while len(ids) < ask.max_new_tokens:
            slots = []  # of each group: what follows its first token, then what its masks say
            for j in range(len(draft)):
                seen = [*context, *draft[: j + 1]]
                group = torch.tensor([*seen, *[MASK] * length])
                targets = len(seen) + torch.arange(length)
                everything, is_noisy = (
                    torch.ones(length, len(group), dtype=torch.bool),
                    torch.ones(length, dtype=torch.bool),
                )
                logits = MODEL(group, torch.arange(len(group)), everything, targets, is_noisy)
                noisy = [choose(logits[k], int(targets[k]), ask) for k in range(length)]
                slots.append([next_token(seen, ask), *noisy[1:]])
            accepted = 1
            while accepted < len(draft) and slots[accepted - 1][0] == draft[accepted]:
                accepted += 1
            context += draft[:accepted]
            ids += [*draft[1:accepted], slots[accepted - 1][0]]
            runs.append(accepted)
            draft = slots[accepted - 1]
        (answer,) = serve([ask], (length * (length + 1),), plan=lambda rows, width: all_stops(rows, length))
        assert (answer.ids, answer.runs) == (ask.cut(ids)[0], runs)


def drafted(
    confidences: Sequence[float], *, is_broken: bool = False, stop_at: int | None = None, width: int = 16
) -> Rows:
    """Return a row of `width` tokens with a draft of these confidences, a stop id in column `stop_at`."""
    options = replace(ASKS[0].options, stop_ids=(STOP,))
    rows = Rows.of([options], TABLE_WIDTH).start_block(torch.tensor([1]), MASK)
    tokens, confidence = rows.tokens.clone(), rows.draft_confidence.clone()
    tokens[0, 1 : len(confidences) + 1] = 2
    if stop_at is not None:
        tokens[0, stop_at] = STOP
    confidence[0, 1 : len(confidences) + 1] = torch.tensor(confidences)
    return rows.replace(tokens=tokens, draft_confidence=confidence, is_broken=torch.tensor([is_broken])).gather(
        torch.tensor([0]), width
    )


def planned(rows: Rows, copies: int = 0) -> tuple[int, list[int]]:
    plan = plan_groups(rows, MASK, copies)
    return int(plan.num_main[0]), plan.num_masks[0, : int(plan.num_main[0])].tolist()


@pytest.mark.parametrize(
    ("rows", "num_main", "groups"),
    [
        pytest.param(drafted([]), 1, [15], id="without a draft, all masks stand behind the pending token"),
        pytest.param(drafted([1.0] * 5), 6, [0, 0, 0, 0, 0, 10], id="a sure draft is followed by its end"),
        pytest.param(drafted([0.0] * 5), 1, [14], id="of a hopeless draft only the first second choice enters"),
        pytest.param(drafted([1.0] * 5, stop_at=3), 4, [4, 4, 4, 0], id="nothing stands behind a stop id"),
    ],
)
def test_plans(rows: Rows, num_main: int, groups: list[int]) -> None:
    assert planned(rows) == (num_main, groups)


def test_likelier_stops_have_more_masks() -> None:
    _, groups = planned(drafted([0.9, 0.4, 0.9, 0.9], width=24))
    assert groups[1] == max(groups)
    _, broken = planned(drafted([0.9] * 4, is_broken=True, width=24))
    _, whole = planned(drafted([0.9] * 4, width=24))
    assert broken[0] > whole[0], "what stands behind a miss is doubted"


def test_a_draft_begins_with_what_follows_the_second_choice_that_verification_finds() -> None:
    rows = drafted([0.4, 0.9], width=32)
    rows = rows.replace(second_ids=torch.full_like(rows.tokens, 3))
    layout = lay_out(rows, plan_groups(rows, MASK), GroupForm.MASKS, MASK)
    ids = torch.full_like(rows.tokens, 9)
    ids[0, 0] = 3
    ids[layout.is_second & (layout.offsets == 1)] = 8
    after, output = advance(rows, layout.anchors, Prediction(ids, ids / 20, ids / 20, ids), MASK)
    assert output.tokens[0, : output.lens[0]].tolist() == [3]
    assert after.tokens[0, :3].tolist() == [3, 8, 9]
    assert after.is_broken, "the group had another token there"
    assert planned(after.gather(torch.tensor([0]), 24))[0] > 1, "and yet that one is sure"


@pytest.mark.parametrize("form", GroupForm)
@pytest.mark.parametrize("width", [4, 8, 16, 33, 48])
def test_a_plan_fills_its_row_and_no_more(width: int, form: GroupForm) -> None:
    generator = torch.Generator().manual_seed(width)
    for number in range(TABLE_WIDTH - 1):
        rows = drafted(torch.rand(number, generator=generator).sqrt().tolist(), width=width)
        plan = plan_groups(rows, MASK, form.num_copies)
        groups = plan.num_masks[0]
        used = int(plan.num_main[0] + groups.sum() + plan.has_second.sum()) + form.num_copies * int((groups > 0).sum())
        assert used <= width
        assert int(groups.max()) < BLOCK_LENGTH
        room = (groups[: int(plan.num_main[0])] < BLOCK_LENGTH - 1).any()
        assert used >= width - form.num_copies - 1 or not room or number < 3
