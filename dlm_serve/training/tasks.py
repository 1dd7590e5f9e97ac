"""Generate synthetic tasks from seeds, with answers that can be scored exactly.

Each answer shows its work, so that a small model can reach it and predict a block of it. A hash of what an example
asks, whatever its wording, decides whether it is for training or held out, so no seed and no count can make the two
overlap.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from hashlib import blake2b
from random import Random
from typing import Literal

Split = Literal["train", "heldout"]

HELDOUT_SHARE = 10
"""One in this many questions is held out."""

_FINAL = "Answer:"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


@dataclass(frozen=True)
class Example:
    """A question and the answer a model should give."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Task:
    """A kind of question. `draw` makes a key, which identifies what is asked, and the example."""

    name: str
    draw: Callable[[Random], tuple[str, Example]]

    def examples(self, split: Split, count: int, seed: int) -> Iterator[Example]:
        """Yield `count` examples of `split`, possibly repeated, the same for the same seed."""
        random = Random(f"{self.name} {split} {seed}")
        while count > 0:
            key, example = self.draw(random)
            if self.split_of(key) == split:
                count -= 1
                yield example

    def split_of(self, key: str) -> Split:
        """Return the split to which the question with this key belongs."""
        digest = blake2b(f"{self.name} {key}".encode(), digest_size=8).digest()
        return "train" if int.from_bytes(digest, "big") % HELDOUT_SHARE else "heldout"

    def is_correct(self, example: Example, text: str) -> bool:
        """Return whether `text` ends in the answer of `example`: what follows its last `Answer:`, else all of it."""
        return _final_part(text) == _final_part(example.answer)


def _final_part(text: str) -> str:
    return text.rpartition(_FINAL)[2].strip()


def _worked(lines: list[str], final: object) -> str:
    return "\n".join([*lines, f"{_FINAL} {final}"])


# --- arithmetic: by columns, as at school -----------------------------------------------------------------------------

_PLACES = ("ones", "tens", "hundreds")


def _draw_arithmetic(random: Random) -> tuple[str, Example]:
    operator = random.choice("+-*")
    if operator == "*":
        a, b = random.randint(11, 999), random.randint(2, 9)
        answer = _multiply(a, b)
    else:
        a, b = random.randint(10, 999), random.randint(10, 999)
        a, b = (max(a, b), min(a, b)) if operator == "-" else (a, b)
        answer = _add(a, b) if operator == "+" else _subtract(a, b)
    question = f"{a} {operator} {b}"
    wording = random.choice(["What is {}?", "Calculate {}.", "{} = ?", "Please work out {}."])
    return question, Example(wording.format(question), answer)


def _add(a: int, b: int) -> str:
    lines, carry = [], 0
    for place, (x, y) in _columns(a, b):
        total = x + y + carry
        lines.append(f"{place}: {x} + {y} + {carry} = {total}, write {total % 10}, carry {total // 10}")
        carry = total // 10
    return _worked(lines, a + b)


def _subtract(a: int, b: int) -> str:
    lines, borrow = [], 0
    for place, (x, y) in _columns(a, b):
        needs = x - borrow < y
        lines.append(f"{place}: {x + 10 * needs} - {borrow} - {y} = {x + 10 * needs - borrow - y}, borrow {needs:d}")
        borrow = int(needs)
    return _worked(lines, a - b)


def _columns(a: int, b: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the place and the digits of both numbers, the ones first."""
    width = len(str(max(a, b)))
    digits = zip(reversed(f"{a:0{width}}"), reversed(f"{b:0{width}}"), strict=True)
    return zip(_PLACES, ((int(x), int(y)) for x, y in digits), strict=False)


def _multiply(a: int, b: int) -> str:
    return _worked(_products(a, b), a * b)


def _products(a: int, b: int) -> list[str]:
    """Return a * b place by place, then the sum, one term after the other."""
    terms = [int(digit) * 10**place * b for place, digit in enumerate(reversed(str(a))) if digit != "0"][::-1]
    lines = [", ".join(f"{term // b} * {b} = {term}" for term in terms)]
    total = terms[0]
    for term in terms[1:]:
        lines.append(f"{total} + {term} = {total + term}")
        total += term
    return lines


# --- lists ------------------------------------------------------------------------------------------------------------

_WORDS = _words(
    "apple bread chair cloud dog door egg fish flower forest garden glass grass hand hat horse house island key lamp "
    "leaf letter milk moon mountain mouse music night ocean paper pencil rain ring river road rose salt ship shoe snow "
    "song spoon star stone street sugar summer sun table tree wall water wind window winter wood"
)
_COLOURS = ("red", "blue", "green", "yellow", "white", "black")


def _draw_sorting(random: Random) -> tuple[str, Example]:
    numbers = random.sample(range(100), random.randint(4, 6))
    descending = random.random() < 0.5
    lines = []
    for count, number in enumerate(numbers, start=1):
        lines.append(f"add {number}: {_listed(sorted(numbers[:count], reverse=descending))}")
    order = "descending" if descending else "ascending"
    wording = random.choice(["Sort in {} order: {}", "Put these numbers in {} order: {}", "Sort {}: {}"])
    answer = _worked(lines, _listed(sorted(numbers, reverse=descending)))
    return f"{order} {_listed(numbers)}", Example(wording.format(order, _listed(numbers)), answer)


def _draw_reversing(random: Random) -> tuple[str, Example]:
    kind, pool = random.choice(
        [("words", _WORDS), ("letters", _words("a b c d e f g h i j k l m n o p q r s t u v w x y z"))]
    )
    items = random.sample(pool, random.randint(4, 8))
    lines = [f"{number}. {item}" for number, item in enumerate(items, start=1)]
    wording = random.choice(["Reverse these {}: {}", "Write these {} backwards: {}"])
    return _listed(items), Example(wording.format(kind, _listed(items)), _worked(lines, _listed(items[::-1])))


def _draw_counting(random: Random) -> tuple[str, Example]:
    kinds = random.sample(random.choice([_COLOURS, _WORDS]), 3)
    items = [random.choice(kinds) for _ in range(random.randint(6, 12))]
    wanted = random.choice(kinds)
    lines = [f"{item}: {items[:count].count(wanted)}" for count, item in enumerate(items, start=1)]
    wording = random.choice(["How many times does {} occur in: {}", "Count {} in this list: {}"])
    question = wording.format(wanted, _listed(items))
    return f"{wanted} {_listed(items)}", Example(question, _worked(lines, items.count(wanted)))


def _listed(items: Sequence[object]) -> str:
    return ", ".join(map(str, items))


# --- units and dates --------------------------------------------------------------------------------------------------

_UNITS = (
    ("kilometres", "metres", 1000),
    ("metres", "centimetres", 100),
    ("kilograms", "grams", 1000),
    ("litres", "millilitres", 1000),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("feet", "inches", 12),
    ("euros", "cents", 100),
    ("dozens", "pieces", 12),
    ("decades", "years", 10),
)


def _draw_units(random: Random) -> tuple[str, Example]:
    large, small, factor = random.choice(_UNITS)
    amount = random.randint(11, 299)
    fact = f"There are {factor} {small} in one of the {large}, so {amount} {large} are {amount} * {factor} {small}."
    lines = [fact, *_products(amount, factor)]
    wording = random.choice(["Convert {} {} to {}.", "How much are {} {} in {}?", "Express {} {} in {}."])
    prompt = wording.format(amount, large, small)
    return f"{amount} {large}", Example(prompt, _worked(lines, f"{amount * factor} {small}"))


_FIRST_YEAR, _LAST_YEAR = 2000, 2039


def _draw_dates(random: Random) -> tuple[str, Example]:
    start = date(random.randint(_FIRST_YEAR, _LAST_YEAR), random.randint(1, 12), random.randint(1, 28))
    days = random.randint(1, 28)
    end = start + timedelta(days=days)
    total = start.day + days
    length = (date(start.year + start.month // 12, start.month % 12 + 1, 1) - timedelta(days=1)).day
    lines = [f"{start:%B} {start.year} has {length} days.", f"{start.day} + {days} = {total}"]
    if total > length:
        lines += [
            f"{total} is more than {length}, so the month is {end:%B} {end.year}.",
            f"{total} - {length} = {end.day}",
        ]
    else:
        lines += [f"{total} is not more than {length}, so the month is {end:%B} {end.year}."]
    wording = random.choice(
        ["What date is {1} days after {0}?", "Add {1} days to {0}.", "It is {0}. What date is it in {1} days?"]
    )
    return f"{start} {days}", Example(wording.format(start, days), _worked(lines, end))


# --- text -------------------------------------------------------------------------------------------------------------

_NAMES = _words(
    "Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Maria Noah Olga Paul Rosa Sam Tina Victor"
)
_CITIES = _words("Athens Berlin Cairo Delhi Dublin Lima London Madrid Oslo Paris Prague Rome Sofia Tokyo Vienna Warsaw")
_JOBS = _words("actor baker builder cook dentist doctor driver farmer judge lawyer nurse painter pilot teacher writer")
_PROFILES = (
    "{name} is {age} years old, lives in {city} and works as a {job}.",
    "In {city} there lives a {job} called {name}, who is {age}.",
    "{name}, {age}, is a {job} from {city}.",
    "The {job} {name} turned {age} last week in {city}.",
)


def _draw_json(random: Random) -> tuple[str, Example]:
    profile = {
        "name": random.choice(_NAMES),
        "age": random.randint(18, 89),
        "city": random.choice(_CITIES),
        "job": random.choice(_JOBS),
    }
    wording = random.choice(["Extract name, age, city and job as JSON: {}", "Write this as JSON: {}"])
    prompt = wording.format(random.choice(_PROFILES).format(**profile))
    return json.dumps(profile), Example(prompt, json.dumps(profile))


_PLACES_TO_BE = _words("bathroom bedroom cellar garden hall kitchen library museum office park school station")


def _draw_questions(random: Random) -> tuple[str, Example]:
    people = random.sample(_NAMES, 2)
    moves = [(random.choice(people), place) for place in random.sample(_PLACES_TO_BE, random.randint(3, 5))]
    who = random.choice(moves)[0]
    story = " ".join(f"{person} went to the {place}." for person, place in moves)
    places = [place for person, place in moves if person == who]
    lines = [f"{who} went to the {', then to the '.join(places)}.", f"So {who} is in the {places[-1]} now."]
    return f"{story} {who}", Example(f"{story} Where is {who}?", _worked(lines, f"the {places[-1]}"))


# --- small Python functions -------------------------------------------------------------------------------------------

_OPERATIONS: dict[str, tuple[str, Callable[[int, int], object]]] = {
    "adds {n} to x": ("x + {n}", lambda x, n: x + n),
    "subtracts {n} from x": ("x - {n}", lambda x, n: x - n),
    "multiplies x by {n}": ("x * {n}", lambda x, n: x * n),
    "says whether x is greater than {n}": ("x > {n}", lambda x, n: x > n),
    "says whether x is less than {n}": ("x < {n}", lambda x, n: x < n),
    "says whether x equals {n}": ("x == {n}", lambda x, n: x == n),
    "lists the first x multiples of {n}": (
        "[{n} * i for i in range(1, x + 1)]",
        lambda x, n: [n * i for i in range(1, x + 1)],
    ),
}
_FUNCTION_NAMES = ("f", "g", "solve", "check", "apply", "compute", "run")


def _draw_python(random: Random) -> tuple[str, Example]:
    description, (expression, apply) = random.choice(list(_OPERATIONS.items()))
    name, n = random.choice(_FUNCTION_NAMES), random.randint(2, 99)
    lines = [f"def {name}(x):", f"    return {expression.format(n=n)}", ""]
    for x in (1, 3, 10)[: 2 if "first" in description else 3]:
        result = apply(x, n)
        lines.append(f"assert {name}({x}) {'is' if isinstance(result, bool) else '=='} {result}")
    wording = random.choice(["Write a Python function {} that {}.", "In Python, define {}, which {}."])
    prompt = wording.format(f"{name}(x)", description.format(n=n))
    return f"{name} {description} {n}", Example(prompt, "\n".join(lines))


TASKS: dict[str, Task] = {
    name: Task(name, draw)
    for name, draw in {
        "arithmetic": _draw_arithmetic,
        "sorting": _draw_sorting,
        "reversing": _draw_reversing,
        "counting": _draw_counting,
        "units": _draw_units,
        "dates": _draw_dates,
        "json": _draw_json,
        "questions": _draw_questions,
        "python": _draw_python,
    }.items()
}
