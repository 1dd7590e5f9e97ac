"""Replayed answers emit what decoding does of them, and the router finds the best way to decode them."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from router_simulation import DRAFTS, IN_ONE_FORWARD, ONE_BY_ONE

from dlm_serve.decoding import ModeSettings
from dlm_serve.decoding.one_forward.plan import SECOND_IS_RIGHT

OF_64, OF_128 = (way for way in IN_ONE_FORWARD if way.budget in (64, 128))


@pytest.fixture(scope="module")
def router_sim() -> Any:
    return importlib.import_module("router_sim")


@pytest.fixture(scope="module")
def hard() -> Any:
    return importlib.import_module("recorded_drafts").load("hard")


def forwards_of(text: Any, ways: Iterator[ModeSettings]) -> list[int]:
    """The tokens of each forward until `text` is complete."""
    decoding = text.decode()
    emitted: list[int] = []
    while sum(emitted) < text.length:
        emitted.append(decoding.forward(next(ways)))
    assert sum(emitted) == text.length
    return emitted


@pytest.mark.parametrize("way", IN_ONE_FORWARD, ids=lambda way: str(way.budget))
def test_one_forward_emits_what_the_replay_counts(hard: Any, way: ModeSettings) -> None:
    replay = importlib.import_module("one_forward_replay")
    for text in hard[:6]:
        count = replay.Count()
        replay.replay(text, way.budget, SECOND_IS_RIGHT, count)
        assert len(forwards_of(text, itertools.repeat(way))) == count.forwards
        assert text.tokens_per_forward(way) == count.tokens / count.forwards


def test_in_turn_a_forward_drafts_and_the_next_emits_what_is_right_of_it(hard: Any) -> None:
    [text, *_] = hard
    emitted, pending = forwards_of(text, itertools.repeat(DRAFTS[1])), text.num_prompt
    assert not any(emitted[::2])
    for number in emitted[1::2]:
        behind = text.ids[pending + 1 :]
        is_right = [a == b for a, b in zip(text.draft(pending, 7).ids, behind, strict=False)]
        assert number == min([*is_right, False].index(False) + 1, len(behind))
        pending += number


def test_a_draft_is_kept_between_budgets_and_lost_by_other_changes(hard: Any) -> None:
    [text, *_] = hard
    alone = forwards_of(text, itertools.repeat(OF_64))
    assert forwards_of(text, itertools.chain([OF_128], itertools.repeat(OF_64)))[:2] == [1, alone[1]]
    there_and_back = forwards_of(text, itertools.chain([OF_64, ONE_BY_ONE], itertools.repeat(OF_64)))
    assert there_and_back[:3] == [1, 1, 1]
    assert forwards_of(text, itertools.chain([OF_64, DRAFTS[3]], itertools.repeat(DRAFTS[3])))[:2] == [1, 0]
    assert forwards_of(text, itertools.repeat(ONE_BY_ONE)) == [1] * text.length


def test_answers_cut_short_and_joined_emit_all_their_tokens(hard: Any) -> None:
    joined = importlib.import_module("recorded_drafts").joined
    for text in (hard[0].cut(24), joined(hard[:3])):
        for way in (ONE_BY_ONE, DRAFTS[3], OF_64):
            forwards_of(text, itertools.repeat(way))
    assert hard[0].cut(24).length == 24
    assert joined(hard[:3]).length == sum(text.length for text in hard[:3]) - 1


@pytest.mark.parametrize("concurrency", [1, 2])
def test_hard_drafts_of_few_requests_are_decoded_about_as_fast_as_can_be(
    router_sim: Any, hard: Any, concurrency: int
) -> None:
    loads = importlib.import_module("simulated_loads")
    load = loads.Load(lambda: itertools.cycle(hard), lambda _: concurrency, 8.0)
    card = router_sim.measured_card()
    fixed = [
        router_sim.run(router_sim.Simulation(card, settings=way, **router_sim.CLIENTS), load).tokens_per_s
        for way in (DRAFTS[3], OF_64, OF_128)
    ]
    assert router_sim.run(router_sim.auto(card, 5), load).tokens_per_s > 0.9 * max(fixed)


def test_behind_a_crowd_one_request_is_decoded_about_as_fast_as_can_be(router_sim: Any) -> None:
    """Easy and hard places of its answers are no reason to go to and fro between ways."""
    card = router_sim.measured_card()
    auto = router_sim.auto(card, 5)
    fixed = router_sim.Simulation(card, settings=OF_128, **router_sim.CLIENTS)
    router_sim.behind_a_change(auto, "medium", 64, 300)
    speed, best = (router_sim.behind_a_change(each, "medium", 1, 4000) for each in (auto, fixed))
    assert speed > 0.96 * best


@pytest.mark.parametrize("seed", [7, 15])
def test_what_a_few_requests_showed_of_a_way_is_not_taken_for_all(router_sim: Any, seed: int) -> None:
    """Easy and hard requests come one by one, and ways are tried with one of them."""
    card = router_sim.measured_card()
    auto = router_sim.auto(card, seed)
    fixed = router_sim.Simulation(card, settings=OF_128, **router_sim.CLIENTS)
    speed, best = (router_sim.run_for(each, "mixed", 1, 40.0) for each in (auto, fixed))
    assert speed > 0.94 * best
