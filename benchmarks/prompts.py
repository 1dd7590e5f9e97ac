"""The prompts that servers are measured with."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path

from dlm_serve.bundled import FOLDER
from dlm_serve.training.tasks import TASKS
from dlm_serve.training.tokenizer import load_tokenizer, render_prompt


def task_prompts(names: Iterable[str] = TASKS) -> list[list[int]]:
    """Return prompts of the named tasks, of those that the bundled model was trained for."""
    tokenizer = load_tokenizer(Path(FOLDER))
    examples = [example for name in names for example in TASKS[name].examples("heldout", 40, seed=11)]
    random.Random(3).shuffle(examples)
    rendered = [render_prompt([example.prompt]) for example in examples]
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in rendered]


def mixed_prompts() -> list[list[int]]:
    """Return prompts of the tasks and prompts of random tokens in turn: answers easy to draft, and hard."""
    easy = task_prompts()
    ordinary = range(512, min(load_tokenizer(Path(FOLDER)).get_vocab_size(), 2048))
    random_tokens = random.Random(5)
    return [prompt for ids in easy for prompt in (ids, random_tokens.choices(ordinary, k=len(ids)))]


def long_prompts() -> list[list[int]]:
    """Return prompts of the tasks with the longest answers, some 110 tokens."""
    return task_prompts(("sorting", "units"))


PROMPTS: dict[str, Callable[[], list[list[int]]]] = {
    "tasks": task_prompts,
    "long": long_prompts,
    "mixed": mixed_prompts,
}
