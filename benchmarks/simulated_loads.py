"""Loads for `router_sim.py`: recorded answers, and how many requests want some at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from recorded_drafts import RecordedText, joined
from recorded_drafts import load as recorded

QUALITIES = ("easy", "medium", "hard")
SHORT = 24
"""Tokens of a short answer, which the end of those that are recorded is cut off for."""
_RUN_IN_S = 6.0
"""Seconds before figures are taken: in the first two thirds requests come one after the other, so that answers no
longer end together."""


@dataclass(frozen=True)
class Load:
    """Clients that send one request after another."""

    texts: Callable[[], Iterator[RecordedText]]
    """Return what requests say, one after the other, from the beginning."""
    concurrency: Callable[[float], int]
    """Return how many clients there are, by seconds from when figures are taken."""
    seconds: float
    """How long figures are taken."""

    @property
    def most(self) -> int:
        """Return the most clients there are."""
        return max(self.concurrency(second / 10) for second in range(math.ceil(self.seconds * 10)))

    def wanted(self, seconds: float) -> int:
        """Return how many clients there are so many seconds from the beginning."""
        share = min(1.5 * seconds / _RUN_IN_S, 1.0)
        return max(round(share * self.concurrency(max(seconds - _RUN_IN_S, 0.0))), 1)

    def is_counted(self, seconds: float) -> bool:
        """Return whether figures are taken then."""
        return seconds >= _RUN_IN_S

    def is_over(self, seconds: float) -> bool:
        """Return whether it has ended."""
        return seconds >= _RUN_IN_S + self.seconds


@cache
def texts_of(quality: str) -> tuple[RecordedText, ...]:
    """Return the recorded answers; those that are asked for again know what was worked out of them."""
    return tuple(recorded(quality))


@cache
def short_texts(quality: str) -> tuple[RecordedText, ...]:
    """Return the beginnings of the recorded answers."""
    return tuple(text.cut(SHORT) for text in texts_of(quality))


def steady(texts: Sequence[RecordedText], number: int) -> Load:
    """Few requests end few answers, which differ: so they get more time."""
    return Load(lambda: itertools.cycle(texts), lambda _: number, 24.0 + 60.0 / number)


def bursty(texts: Sequence[RecordedText]) -> Load:
    """4 requests for three seconds, then 96, and so on."""
    return Load(lambda: itertools.cycle(texts), lambda second: 96 if second // 3 % 2 else 4, 18.0)


def diurnal(texts: Sequence[RecordedText]) -> Load:
    """From 1 to 128 requests and back, within 20 seconds."""
    return Load(
        lambda: itertools.cycle(texts), lambda second: round(64.5 - 63.5 * math.cos(2 * math.pi * second / 20)), 20.0
    )


def long_beside_short(quality: str) -> Load:
    """One request of some 6,000 tokens beside 24 that are short."""
    long, short = joined(texts_of(quality) * 4), short_texts(quality)
    return Load(lambda: itertools.chain([long], itertools.cycle(short)), lambda _: 25, 12.0)


def loads() -> dict[str, Load]:
    """Return all by what they are called."""
    named = {
        f"{quality}, {number}": steady(texts_of(quality), number)
        for quality in QUALITIES
        for number in (1, 2, 8, 32, 128)
    }
    named |= {f"mixed, {number}": steady(texts_of("mixed"), number) for number in (8, 32, 128)}
    for quality in ("medium", "hard"):
        named[f"{quality}, bursts"] = bursty(texts_of(quality))
        named[f"{quality}, a day"] = diurnal(texts_of(quality))
        named[f"{quality}, long beside short"] = long_beside_short(quality)
    named |= {f"medium, {number}, short": steady(short_texts("medium"), number) for number in (16, 64, 128)}
    return named
