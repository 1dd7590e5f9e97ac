"""Time decode steps and prefills as they run, without waiting for the device.

What counts is the time from the end of one step to the end of the next: it includes what the host takes where the
device waits for it. Behind a prefill, or an idle server, it is the time from a step's own start. A prefill takes until
that, or to its own end where another follows.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

import torch

from dlm_serve.routing.costs import StepShape
from dlm_serve.routing.prefills import PrefillShape

Mark = TypeVar("Mark")

MOST_KEPT = 64
"""Times that are kept until somebody asks for them, which on all ranks but the first nobody does."""


class Timed(NamedTuple):
    """A step or a prefill that has ended."""

    shape: StepShape | PrefillShape
    ms: float


class StepTimer(ABC, Generic[Mark]):
    """Takes the times of steps by marks at their ends."""

    def __init__(self) -> None:
        self._last: Mark | None = None
        self._prefill: tuple[PrefillShape, Mark, Mark] | None = None
        self._marked: deque[tuple[StepShape | PrefillShape, Mark, Mark]] = deque(maxlen=MOST_KEPT)

    def begin_step(self) -> None:
        """Note that a step is about to be launched."""
        if self._last is not None:
            return
        self._last = self._mark()
        if self._prefill is not None:
            shape, start, _ = self._prefill
            self._marked.append((shape, start, self._last))
            self._prefill = None

    def end_step(self, shape: StepShape) -> None:
        """Note that the step was launched."""
        assert self._last is not None
        end = self._mark()
        self._marked.append((shape, self._last, end))
        self._last = end

    @contextmanager
    def prefill(self, shape: PrefillShape) -> Iterator[None]:
        """Note that a prefill is launched."""
        self._last = None
        if self._prefill is not None:
            self._marked.append(self._prefill)
        start = self._mark()
        yield
        self._prefill = (shape, start, self._mark())

    def finished(self) -> Iterator[Timed]:
        """Yield what has ended since, as far as that is known without waiting."""
        while self._marked and self._is_reached(self._marked[0][2]):
            shape, start, end = self._marked.popleft()
            yield Timed(shape, self._ms(start, end))

    @abstractmethod
    def _mark(self) -> Mark: ...

    @abstractmethod
    def _is_reached(self, mark: Mark) -> bool: ...

    @abstractmethod
    def _ms(self, start: Mark, end: Mark) -> float: ...


class HostTimer(StepTimer[float]):
    """Times steps that end before their launch returns, as on a CPU."""

    def _mark(self) -> float:
        return time.perf_counter()

    def _is_reached(self, mark: float) -> bool:
        return True

    def _ms(self, start: float, end: float) -> float:
        return 1000 * (end - start)


class EventTimer(StepTimer[torch.cuda.Event]):
    """Times steps by events in the stream that runs them."""

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _is_reached(self, mark: torch.cuda.Event) -> bool:
        return bool(mark.query())  # type: ignore[no-untyped-call]

    def _ms(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return float(start.elapsed_time(end))
