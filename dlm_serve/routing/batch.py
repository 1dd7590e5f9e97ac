"""The requests that run, as the router sees them, and what it keeps of each while it runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlm_serve.decoding import Choice, Evidence, Mode, RequestState

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]

AUTOREGRESSIVE = -1
"""The kind of a request that decodes one token at a time; other kinds are numbers of choices."""


class RunningRequest(NamedTuple):
    """A request that decodes."""

    rid: str
    state: RequestState
    context: int
    """Tokens that its next forward reads."""
    answer_length: int
    """Most tokens of its answer."""
    remaining: int
    """Most tokens that it may still emit."""


@dataclass(frozen=True)
class RunningBatch:
    """The requests of a step: F that the router may move, and others that are pinned to one way to decode.

    Those count as pinned, too, whose blocks are of a length or a budget that is not among the choices.
    """

    free: Sequence[RunningRequest]
    slots: Integers  # [F], places in tables of the policy
    kinds: Integers  # [F], how each decodes now: a choice or AUTOREGRESSIVE
    permitted: Mask  # [K, F], the choices each may decode with
    remaining: Array  # [F], the most tokens that each may still emit
    choices: tuple[Choice, ...]
    """The K ways to decode blocks."""
    num_pinned_decode: int
    """Pinned requests that decode autoregressively."""
    num_pinned_blocks: int
    """Pinned requests that decode blocks."""
    pinned_width: int
    """The longest row that a pinned request needs, at least 1; one that speculates in one forward takes any."""
    mean_context: float
    """Tokens, over all requests."""

    @property
    def num_requests(self) -> int:
        """Return the number of all requests."""
        return len(self.free) + self.num_pinned_decode + self.num_pinned_blocks


class Roster:
    """Gives each free request a slot for as long as it runs, and remembers how it decodes."""

    def __init__(self, choices: tuple[Choice, ...], capacity: int) -> None:
        self.kinds: Integers = np.full(capacity, AUTOREGRESSIVE, dtype=np.int64)
        """How the request in each slot decodes, or was told to."""
        self._choices = choices
        self._kind_of = {choice: kind for kind, choice in enumerate(choices)}
        self._permitted: Mask = np.zeros((len(choices), capacity), dtype=np.bool_)
        self._slots: dict[RequestState, int] = {}
        self._unused = list(range(capacity))

    def take_evidence(self) -> tuple[list[int], list[Evidence]]:
        """Take the finished blocks of all requests, and the slot of each; those of requests that ended, too."""
        slots: list[int] = []
        blocks: list[Evidence] = []
        for state, slot in self._slots.items():
            slots += [slot] * len(state.evidence)
            blocks += state.evidence
            state.evidence.clear()
        return slots, blocks

    def update(self, requests: Sequence[RunningRequest], enter: Callable[[Sequence[int]], None]) -> RunningBatch:
        """Return the batch of `requests`, once `enter` was called with the slots of those that are new."""
        free = [each for each in requests if each.state in self._slots or self._may_move(each.state)]
        states = dict.fromkeys(request.state for request in free)  # in their order
        if self._slots.keys() != states.keys():
            self._replace(states, enter)
        at = np.array([self._slots[request.state] for request in free], dtype=np.int64)
        pinned = [request.state.current for request in requests if request.state not in states]
        num_pinned_decode = sum(settings.mode is Mode.AUTOREGRESSIVE for settings in pinned)
        return RunningBatch(
            free=free,
            slots=at,
            kinds=self.kinds[at],
            permitted=self._permitted[:, at],
            remaining=np.array([request.remaining for request in free], dtype=np.float64),
            choices=self._choices,
            num_pinned_decode=num_pinned_decode,
            num_pinned_blocks=len(pinned) - num_pinned_decode,
            pinned_width=max((settings.block_length for settings in pinned if settings.budget is None), default=1),
            mean_context=sum([request.context for request in requests]) / max(len(requests), 1),
        )

    def _may_move(self, state: RequestState) -> bool:
        """Return whether the router may move it: between autoregression and at least one of its choices."""
        return state.is_free and any(state.settings_of(choice) for choice in self._choices)

    def _replace(self, running: Collection[RequestState], enter: Callable[[Sequence[int]], None]) -> None:
        """Give up the slots of requests that ended, and give some to those of `running` that are new."""
        for state in [state for state in self._slots if state not in running]:
            self._unused.append(self._slots.pop(state))
        new = {state: self._unused.pop() for state in running if state not in self._slots}
        for state, slot in new.items():
            self._permitted[:, slot] = [state.settings_of(choice) is not None for choice in self._choices]
            self.kinds[slot] = self._kind_of.get(state.next_settings.choice, AUTOREGRESSIVE)
        if new:
            self._slots |= new
            enter([*new.values()])
