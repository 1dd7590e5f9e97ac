"""What blocks yield is found from blocks that were decoded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from router_scenes import CHOICES, WIDTHS

from dlm_serve.decoding import Choice, Evidence, Mode
from dlm_serve.routing.measured import MeasuredPolicy
from dlm_serve.routing.yields import YieldModel

MANY = np.array([1e9])
WITH_BUDGET = [*CHOICES, Choice(Mode.SELF_SPECULATION, 32, budget=64)]


def block_of(chance: float, block_length: int, random: np.random.Generator) -> Evidence:
    """A block whose drafts are right with a chance that is the same at every position."""
    wrong = np.flatnonzero(random.random(block_length - 1) >= chance)
    num_right = int(wrong[0]) if len(wrong) else block_length - 1
    return Evidence(Choice(Mode.SELF_SPECULATION, block_length), num_right + 1, 2)


def tokens_per_block(chance: float, block_length: int) -> float:
    return sum(chance**drafts for drafts in range(block_length))


def learned(chance: float, block_length: int, num_blocks: int, choices: Sequence[Choice] = CHOICES) -> YieldModel:
    model, random = YieldModel(choices, capacity=4), np.random.default_rng(1)
    for _ in range(num_blocks):
        model.observe([0], [block_of(chance, block_length, random)])
        model.fade(0.01)
    return model


@pytest.mark.parametrize("chance", [0.3, 0.7, 0.9, 0.97])
def test_blocks_of_one_length_say_what_shorter_ones_yield(chance: float) -> None:
    expected = learned(chance, 32, 300).expected(np.array([0]), MANY)[:, 0]
    for yielded, width in zip(expected, WIDTHS, strict=True):
        assert yielded == pytest.approx(tokens_per_block(chance, width) / 2, rel=0.15)


def test_what_short_blocks_never_reached_is_guessed_from_what_they_did() -> None:
    model = learned(0.97, 4, 300)
    assert model.expected(np.array([0]), MANY)[3, 0] == pytest.approx(tokens_per_block(0.97, 32) / 2, rel=0.25)


def test_requests_differ_and_a_new_one_is_as_the_others() -> None:
    model, random = YieldModel(CHOICES, capacity=3), np.random.default_rng(2)
    for _ in range(60):
        model.observe([0, 1], [block_of(0.95, 16, random), block_of(0.3, 16, random)])
        model.fade(0.01)
    good, bad, new = model.expected(np.arange(3), np.repeat(MANY, 3))[2]
    assert good == pytest.approx(tokens_per_block(0.95, 16) / 2, rel=0.25)
    assert bad == pytest.approx(tokens_per_block(0.3, 16) / 2, rel=0.25)
    assert bad < new < good
    assert new == pytest.approx(model.usual()[2])


@pytest.mark.parametrize(("chances", "memory"), [((0.95, 0.95), 0), ((0.95, 0.2), 1)], ids=["goes on", "changes"])
def test_how_long_to_remember_a_request_is_learned(chances: tuple[float, float], memory: int) -> None:
    """Beside hard ones there are answers that go on as they began, or turn easy or hard every twenty blocks."""
    model, random = YieldModel(CHOICES, capacity=2), np.random.default_rng(6)
    for number in range(300):
        model.observe([0, 1], [block_of(chances[number // 20 % 2], 16, random), block_of(0.2, 16, random)])
        model.fade(0.01)
    assert model._drafts.memory == memory


def test_a_slot_forgets_its_request() -> None:
    model = learned(0.2, 8, 40)
    model.forget([0])
    assert model.expected(np.array([0]), MANY)[:, 0].tolist() == pytest.approx(model.usual().tolist())


def test_no_more_than_remains() -> None:
    model = learned(0.97, 32, 100)
    assert model.expected(np.array([0, 0]), np.array([1.0, 5.0]))[3].tolist() == [0.5, 2.5]


def test_an_answer_that_ended_in_a_block_does_not_make_its_drafts_wrong() -> None:
    ended, wrong = YieldModel(CHOICES, 1), YieldModel(CHOICES, 1)
    for model, is_cut in ((ended, True), (wrong, False)):
        model.observe([0] * 10, [Evidence(Choice(Mode.SELF_SPECULATION, 32), 5, 2, is_cut=is_cut)] * 10)
        model.fade(0.0)
    assert ended.usual()[3] > 2 * wrong.usual()[3]


def test_hope_is_for_what_is_not_known() -> None:
    """For a request that has decoded nothing, and for speculation in one forward, of which others say little."""
    model = learned(0.5, 8, 200, choices=WITH_BUDGET)
    slots, remaining = np.array([0, 1]), np.repeat(MANY, 2)
    hope = model.hopeful(slots, remaining) / model.expected(slots, remaining) - 1
    assert (hope > 0).all()
    assert hope[1, 1] > 1.2 * hope[1, 0], "of a request that decoded nothing"
    assert hope[4, 0] > 1.2 * hope[1, 0], "of one forward"


def test_time_makes_doubtful() -> None:
    model = learned(0.2, 8, 200)
    before = model.usual()[1]
    model.fade(3600)
    assert model.usual()[1] > 1.5 * before


def test_new_weights_are_soon_known() -> None:
    """What others show of them counts for more than what was learned before."""
    kept, renewed = (MeasuredPolicy(CHOICES, 4, hysteresis=0.03, trial_share=0.01) for _ in range(2))
    for policy in (kept, renewed):
        policy.yields = learned(0.97, 32, 300)
    renewed.start_anew()
    for model in (kept.yields, renewed.yields):
        random = np.random.default_rng(3)
        for _ in range(15):
            model.forget([1])
            model.observe([1] * 4, [block_of(0.5, 32, random) for _ in range(4)])
            model.fade(0.01)
    assert renewed.yields.usual()[3] < 2.0, "of 1 in truth"
    assert kept.yields.usual()[3] > 3 * renewed.yields.usual()[3]


def test_what_is_never_used_takes_as_many_forwards_as_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many blocks others decode."""
    monkeypatch.setattr("dlm_serve.routing.yields.SHARED_FADE", 0.5)
    model = YieldModel(CHOICES, 1)
    for _ in range(1200):
        model.observe([0], [Evidence(CHOICES[1], 4, 2)])
    assert [model.forwards_per_block(k) for k in range(4)] == pytest.approx([2.0] * 4)


def test_a_block_of_diffusion_yields_its_length() -> None:
    model = YieldModel([*CHOICES, Choice(Mode.DIFFUSION, 32)], 1)
    for _ in range(400):
        model.observe([0], [Evidence(Choice(Mode.DIFFUSION, 32), 32, 4)])
    assert model.usual()[4] == pytest.approx(8, rel=0.1)


def test_speculation_in_one_forward_is_learned_apart() -> None:
    """It yields what it does, however that compares with drafting in turn."""
    choices = WITH_BUDGET
    model, random = YieldModel(choices, 3), np.random.default_rng(4)
    before = model.usual()
    assert before[3] < before[4] < 2 * before[3], "it drafts and verifies at once, and is wrong more often"
    for chance, slot in ((0.9, 0), (0.4, 1)) * 150:
        block = block_of(chance, 32, random)
        model.observe([slot], [block._replace(choice=choices[4], num_forwards=1)])
        model.fade(0.01)
    easy, hard = model.expected(np.arange(2), np.repeat(MANY, 2))[4]
    assert easy == pytest.approx(tokens_per_block(0.9, 32), rel=0.25)
    assert hard == pytest.approx(tokens_per_block(0.4, 32), rel=0.25)


def test_drafts_of_one_forward_are_no_longer_than_half_its_budget() -> None:
    """A row that verifies all of its draft says nothing of later drafts."""
    choices = [*CHOICES, Choice(Mode.SELF_SPECULATION, 32, budget=16)]
    model = YieldModel(choices, 1)
    for _ in range(100):
        model.observe([0], [Evidence(choices[4], 8, 1)])
        model.fade(0.01)
    in_turn, in_one_forward = model.expected(np.array([0]), MANY)[3:, 0]
    assert in_turn > 12
    assert in_one_forward == pytest.approx(8, rel=0.1)


def test_what_one_budget_yields_says_something_of_others_and_of_drafting_in_turn() -> None:
    choices = [*CHOICES, *(Choice(Mode.SELF_SPECULATION, 32, budget=budget) for budget in (64, 128))]
    before, model, random = YieldModel(choices, 1), YieldModel(choices, 1), np.random.default_rng(4)
    for _ in range(300):
        model.observe([0], [block_of(0.95, 32, random)._replace(choice=choices[4], num_forwards=1)])
        model.fade(0.01)
    assert (model.usual()[[1, 2, 3, 5]] > 1.3 * before.usual()[[1, 2, 3, 5]]).all()


def test_what_was_learned_in_one_forward_stays_where_drafting_in_turn_turns_out_otherwise() -> None:
    choices = WITH_BUDGET
    model, random = YieldModel(choices, 1), np.random.default_rng(4)
    for chance, choice in (*[(0.7, choices[4])] * 300, *[(0.9, choices[3])] * 100):
        num_forwards = 2 if choice.budget is None else 1
        model.observe([0], [block_of(chance, 32, random)._replace(choice=choice, num_forwards=num_forwards)])
        model.fade(0.001)
    assert model.usual()[4] == pytest.approx(tokens_per_block(0.7, 32), rel=0.25)


def test_a_forward_without_a_draft_counts_for_what_a_choice_yields_and_not_for_the_text() -> None:
    choices = WITH_BUDGET
    model = YieldModel(choices, 1)
    for _ in range(100):
        model.observe([0, 0], [Evidence(choices[4], 1, 1, has_draft=False), Evidence(choices[4], 32, 1)])
        model.fade(0.01)
    in_turn, in_one_forward = model.expected(np.array([0]), MANY)[3:, 0]
    assert in_one_forward == pytest.approx(33 / 2, rel=0.15)
    assert in_turn > 12, "of at most 16"


def test_many_requests_do_not_speculate_in_one_forward() -> None:
    choices = WITH_BUDGET
    model, whole = YieldModel(choices, 64), Evidence(choices[4], 32, 1)
    for _ in range(100):  # drafts that are better than those of other ways
        model.observe([0, 1], [whole, Evidence(choices[3], 2, 2)])
        model.fade(0.01)
    assert (model.expected(np.arange(16), np.repeat(MANY, 16))[4] > 2).all()
    assert (model.expected(np.arange(64), np.repeat(MANY, 64))[4] == 0).all()
