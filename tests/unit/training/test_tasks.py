"""The synthetic tasks: right answers, splits that never meet, exact scores."""

from __future__ import annotations

import json
import re
from datetime import date, timedelta

import pytest

from dlm_serve.training.tasks import TASKS, Example


def examples(name: str, count: int = 300) -> list[Example]:
    return list(TASKS[name].examples("train", count, seed=1))


def final(example: Example) -> str:
    return example.answer.rpartition("Answer: ")[2]


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


@pytest.mark.parametrize("name", TASKS)
def test_same_seed_same_examples_and_another_seed_others(name: str) -> None:
    task = TASKS[name]
    assert list(task.examples("train", 50, seed=7)) == list(task.examples("train", 50, seed=7))
    assert list(task.examples("train", 50, seed=7)) != list(task.examples("train", 50, seed=8))


@pytest.mark.parametrize("name", TASKS)
def test_the_heldout_split_shares_no_question_with_training(name: str) -> None:
    task = TASKS[name]
    train = {example.prompt for example in task.examples("train", 5000, seed=0)}
    heldout = {example.prompt for example in task.examples("heldout", 500, seed=0)}
    assert heldout
    assert not train & heldout


@pytest.mark.parametrize("name", TASKS)
def test_a_score_looks_at_the_final_answer_alone(name: str) -> None:
    task = TASKS[name]
    example = examples(name, 1)[0]
    assert task.is_correct(example, f" {example.answer}\n")
    assert not task.is_correct(example, example.answer[:-1])
    assert not task.is_correct(example, "")
    if "Answer:" in example.answer:
        assert task.is_correct(example, f"no work shown\nAnswer: {final(example)}")


def test_arithmetic_is_right_in_its_result_and_in_each_written_step() -> None:
    for example in examples("arithmetic"):
        a, operator, b = re.findall(r"(\d+) ([-+*]) (\d+)", example.prompt)[0]
        assert int(final(example)) == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[operator]
        for left, right in re.findall(r"(\d+(?: [-+*] \d+)+) = (\d+)", example.answer):
            assert eval(left) == int(right)


def test_lists_are_sorted_reversed_and_counted() -> None:
    for example in examples("sorting"):
        given = numbers(example.prompt)
        assert numbers(final(example)) == sorted(given, reverse="descending" in example.prompt)
    for example in examples("reversing"):
        assert final(example).split(", ")[::-1] == example.prompt.partition(": ")[2].split(", ")
    for example in examples("counting"):
        question, _, items = example.prompt.partition(": ")
        wanted = question.removeprefix("Count ").removeprefix("How many times does ").split()[0]
        assert int(final(example)) == items.split(", ").count(wanted)


def test_units_and_dates_are_right() -> None:
    factors = {"weeks days": 7, "hours minutes": 60, "feet inches": 12}
    for example in examples("units"):
        large = re.findall(r"\d+ (\w+)", example.prompt)[0]
        amount, (value, small) = numbers(example.prompt)[0], final(example).split()
        if f"{large} {small}" in factors:
            assert int(value) == amount * factors[f"{large} {small}"]
    for example in examples("dates"):
        start = re.findall(r"\d{4}-\d\d-\d\d", example.prompt)[0]
        days = numbers(example.prompt.replace(start, ""))[0]
        assert date.fromisoformat(final(example)) == date.fromisoformat(start) + timedelta(days=days)


def test_extracted_json_and_answers_come_from_the_text() -> None:
    for example in examples("json"):
        profile = json.loads(example.answer)
        assert list(profile) == ["name", "age", "city", "job"]
        assert all(str(value) in example.prompt for value in profile.values())
    for example in examples("questions"):
        who = re.findall(r"Where is (\w+)\?", example.prompt)[0]
        assert final(example) == re.findall(rf"{who} went to (the \w+)\.", example.prompt)[-1]


def test_python_functions_pass_their_own_asserts() -> None:
    for example in examples("python"):
        exec(compile(example.answer, "answer", "exec"), {})
