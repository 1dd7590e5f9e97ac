"""What the requests of a simulation are to say, and how many tokens of it each of their forwards emits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dlm_serve.decoding import Mode, ModeSettings


class Decoding(Protocol):
    """A request's forwards, one after the other."""

    def forward(self, settings: ModeSettings) -> int:
        """Return the tokens that the next forward emits, with `settings`, which may be others than before."""


class Text(Protocol):
    """A request's answer."""

    @property
    def num_prompt(self) -> int:
        """Return the tokens of the prompt."""

    @property
    def length(self) -> int:
        """Return the tokens that decode steps emit."""

    @property
    def max_new_tokens(self) -> int | None:
        """Return all that the host knows of its length until it ends; `length` itself if None."""

    def decode(self, random: np.random.Generator) -> Decoding:
        """Let a request begin that says this; where chance decides, it is that of `random`."""

    def tokens_per_forward(self, settings: ModeSettings) -> float:
        """Return what a forward emits on average, if all are with `settings`."""


@dataclass
class ChanceText:
    """An answer whose drafts are right with the same chance at every position. They are made in turn."""

    chance: float
    length: int = 1_000_000
    num_prompt: int = 100
    max_new_tokens: int | None = None

    def decode(self, random: np.random.Generator) -> ChanceDecoding:
        """See `Text`."""
        return ChanceDecoding(self, random)

    def tokens_per_forward(self, settings: ModeSettings) -> float:
        """See `Text`."""
        if settings.mode is Mode.AUTOREGRESSIVE:
            return 1.0
        return tokens_per_block(self.chance, settings.block_length) / 2


class ChanceDecoding:
    """The forwards of a `ChanceText`: a draft, its verification, the next draft."""

    def __init__(self, text: ChanceText, random: np.random.Generator) -> None:
        self._text = text
        self._random = random
        self._settings: ModeSettings | None = None
        self._num_drafts = 0
        """Those that the next forward verifies."""

    def forward(self, settings: ModeSettings) -> int:
        """See `Decoding`."""
        assert settings.budget is None
        if settings != self._settings:
            self._settings, self._num_drafts = settings, 0
        if settings.mode is Mode.AUTOREGRESSIVE:
            return 1
        verified = self._num_drafts
        self._num_drafts = 0 if verified else settings.block_length - 1
        if not verified:
            return 0
        return min(int(self._random.geometric(1 - self._text.chance)), verified + 1)


def tokens_per_block(chance: float, width: int) -> float:
    """Return what a block yields on average, where each draft is right with `chance`."""
    return float(sum(chance**drafts for drafts in range(width)))
