"""The time of a step: tables of forwards by their number of rows, and what running steps teach about them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class StepShape:
    """What the forwards of a step are over."""

    num_decode: int = 0
    """Rows of one token, in the engine's own decode."""
    decode_context: int = 0
    """Tokens of context that these rows read, together."""
    num_blocks: int = 0
    """Rows of the block forward."""
    width: int = 1
    """Tokens of each of them."""
    block_context: int = 0
    """Tokens of context that these rows read, together."""


@dataclass(frozen=True, eq=False)
class CostTable:
    """Milliseconds of forwards, none for those without rows; those of a step add up."""

    widths: tuple[int, ...]
    """Widths of block forwards, ascending: K of them."""
    decode_ms: Array  # [N + 1], by the number of rows
    block_ms: Array  # [K, N + 1], infinite where rows of one forward have no graph: they are made narrower
    decode_context_ms: float
    """What each token of context adds to a decode forward."""
    block_context_ms: Array  # [K], the same of block forwards

    def __post_init__(self) -> None:
        self.decode_ms[0] = 0
        self.block_ms[:, 0] = 0

    @property
    def max_rows(self) -> int:
        """Return N, the most rows of a forward."""
        return len(self.decode_ms) - 1

    def index_of(self, width: int) -> int:
        """Return which of the widths a block forward of `width` has: the next that is listed, or the largest."""
        return min(bisect_left(self.widths, width), len(self.widths) - 1)

    def widest(self, num_rows: int, width: int, least: int) -> int:
        """Return the width to run `num_rows` rows at: `width`, or the next below of finite cost, at least `least`."""
        k = self.index_of(width)
        while k and np.isinf(self.block_ms[k, min(num_rows, self.max_rows)]) and self.widths[k - 1] >= least:
            k -= 1
        return min(width, self.widths[k])

    def width_of(self, step: StepShape) -> int:
        """Return the width that the block forward of a step has here; 1 if it has none."""
        return self.widths[self.index_of(step.width)] if step.num_blocks else 1

    def ms(self, step: StepShape) -> float:
        """Return the milliseconds of a step."""
        k = self.index_of(step.width)
        of_decode = self.decode_ms[min(step.num_decode, self.max_rows)] + step.decode_context * self.decode_context_ms
        of_blocks = (
            self.block_ms[k, min(step.num_blocks, self.max_rows)] + step.block_context * self.block_context_ms[k]
        )
        return float(of_decode + of_blocks)


class CostModel(ABC):
    """A cost table that is corrected by the steps that run."""

    @property
    @abstractmethod
    def table(self) -> CostTable:
        """Return the costs as they are known now; the same object while nothing was learned."""

    @abstractmethod
    def observe(self, step: StepShape, ms: float) -> None:
        """Learn that `step` took `ms` milliseconds."""


class MeasuredCosts(CostModel):
    """A table that was measured before the first request, times factors that are learned.

    A factor belongs to a kind of forward and to its number of rows, in powers of two. Where none was observed, the
    factor of the same kind at other sizes is taken, else the mean of all.
    """

    _SLOWEST = 0.05
    """The weight of a new observation when there were many."""
    _MOST = 0.7
    """The largest difference of logarithms that one step may teach: most of a hiccup is no news."""
    _BATCH = 64
    """Observations from one table to the next, which every rank is told."""

    def __init__(self, measured: CostTable) -> None:
        self._measured = self._table = measured
        self._buckets = np.array([_bucket(rows) for rows in range(measured.max_rows + 1)])
        size = (1 + len(measured.widths), _bucket(measured.max_rows) + 1)
        self._log_factor = np.zeros(size)
        self._count = np.zeros(size, dtype=np.int64)
        self._unread = 0

    @property
    def table(self) -> CostTable:
        """See `CostModel`."""
        if self._unread >= self._BATCH:
            self._unread = 0
            self._table = self._corrected()
        return self._table

    def observe(self, step: StepShape, ms: float) -> None:
        """See `CostModel`."""
        cells = [(0, _bucket(step.num_decode))] if step.num_decode else []
        if step.num_blocks:
            cells.append((1 + self._measured.index_of(step.width), _bucket(step.num_blocks)))
        last = self._count.shape[1] - 1
        cells = [(kind, min(bucket, last)) for kind, bucket in cells]
        predicted = self._measured.ms(step)
        if not cells or not 0 < predicted < np.inf or ms <= 0:
            return
        known = float(np.mean([self._log_factor[cell] for cell in cells]))
        news = float(np.clip(np.log(ms / predicted) - known, -self._MOST, self._MOST))
        for cell in cells:
            self._count[cell] += 1
            self._log_factor[cell] += max(self._SLOWEST, 1 / (1 + self._count[cell])) * news
        self._unread += 1

    def _corrected(self) -> CostTable:
        seen = self._count > 0
        everywhere = float(self._log_factor[seen].mean())
        factors = np.empty_like(self._log_factor)
        buckets = np.arange(factors.shape[1])
        for kind, (row, known) in enumerate(zip(self._log_factor, seen, strict=True)):
            factors[kind] = np.interp(buckets, buckets[known], row[known]) if known.any() else everywhere
        factors = np.exp(factors)
        scale, kinds = factors[:, self._buckets], factors.mean(axis=1)
        measured = self._measured
        return CostTable(
            measured.widths,
            measured.decode_ms * scale[0],
            measured.block_ms * scale[1:],
            measured.decode_context_ms * float(kinds[0]),
            measured.block_context_ms * kinds[1:],
        )


class LearnedCosts(CostModel):
    """Costs that are linear in tokens and in context, learned from running steps alone.

    A forward takes a constant, something for each token, and something for each token of context: three numbers for
    decode forwards and three for block forwards, fitted by least squares in which old steps fade.
    """

    _PRIOR = np.array([10.0, 0.2, 1e-4, 10.0, 0.2, 1e-4])
    """Milliseconds of a small model on a CPU."""
    _PRIOR_WEIGHT = np.array([1e-2, 1e-1, 1e3, 1e-2, 1e-1, 1e3])
    _FADE = 0.995
    _BATCH = 8

    def __init__(self, widths: Sequence[int], max_rows: int) -> None:
        self._widths = tuple(sorted(widths))
        self._max_rows = max_rows
        self._square, self._product = np.zeros((6, 6)), np.zeros(6)
        self._unread = 0
        self._table = self._tabulated(self._PRIOR)

    @property
    def table(self) -> CostTable:
        """See `CostModel`."""
        if self._unread >= self._BATCH:
            self._unread = 0
            prior = np.diag(self._PRIOR_WEIGHT)
            fitted = np.linalg.solve(self._square + prior, self._product + prior @ self._PRIOR)
            self._table = self._tabulated(np.maximum(fitted, [0.01, 0, 0, 0.01, 0, 0]))
        return self._table

    def observe(self, step: StepShape, ms: float) -> None:
        """See `CostModel`. Slow steps count for less, so that all are fitted by the same proportion."""
        row = np.array(
            [
                step.num_decode > 0,
                step.num_decode,
                step.decode_context,
                step.num_blocks > 0,
                step.num_blocks * step.width,
                step.block_context,
            ],
            dtype=np.float64,
        )
        if ms <= 0 or not row.any():
            return
        row /= ms
        self._square = self._FADE * self._square + np.outer(row, row)
        self._product = self._FADE * self._product + row
        self._unread += 1

    def _tabulated(self, fitted: Array) -> CostTable:
        rows = np.arange(self._max_rows + 1)
        tokens = np.array(self._widths)[:, None] * rows
        return CostTable(
            self._widths,
            fitted[0] + fitted[1] * rows,
            fitted[3] + fitted[4] * tokens,
            float(fitted[2]),
            np.full(len(self._widths), fitted[5]),
        )


def interpolated(sizes: Sequence[int], values: Sequence[float], max_rows: int) -> Array:
    """Return a value for each number of rows up to `max_rows` [N + 1], from those at `sizes`, ascending.

    A forward costs at least as much as one of fewer rows. Beyond the largest size costs go on as between the last two,
    or as on the whole where that is more.
    """
    rows = np.arange(max_rows + 1)
    rising = np.maximum.accumulate(np.asarray(values, dtype=np.float64))
    found: Any = np.interp(rows, sizes, rising)
    if len(sizes) > 1 and max_rows > sizes[-1]:
        slope = max((rising[-1] - rising[first]) / (sizes[-1] - sizes[first]) for first in (0, -2))
        found = np.where(rows > sizes[-1], rising[-1] + slope * (rows - sizes[-1]), found)
    return np.asarray(found, dtype=np.float64)


def _bucket(num_rows: int) -> int:
    """Return the exponent of the power of two that a number of rows is rounded up to."""
    return max(num_rows - 1, 0).bit_length()
