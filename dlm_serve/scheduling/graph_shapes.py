"""Choose the shapes of block steps that CUDA graphs are captured for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Batch sizes that are captured; a step of any other is padded to the next."""


MOST_SPECULATED = 256
"""Tokens of all rows that speculate in one forward: from about so many on a token costs what it does anywhere."""


@dataclass(frozen=True)
class GraphShape:
    """A batch size and a width."""

    batch_size: int
    width: int

    @property
    def num_tokens(self) -> int:
        """Return the tokens in a forward of this shape."""
        return self.batch_size * self.width


@dataclass(frozen=True)
class GraphShapes:
    """All that are captured, largest first, so that the memory of one serves the next."""

    all: tuple[GraphShape, ...]

    @classmethod
    def within(
        cls, widths: Sequence[int], max_batch_size: int, max_tokens: int, budgets: Sequence[int] = ()
    ) -> GraphShapes:
        """Return those of the `widths` for at most `max_batch_size` rows and `max_tokens` tokens.

        Those of `budgets`, rows that speculate in one forward, are for fewer: it pays for few requests.
        """
        largest = min(max_batch_size, BATCH_SIZES[-1])
        sizes = [*(size for size in BATCH_SIZES if size < largest), largest]
        most = {**dict.fromkeys(budgets, min(MOST_SPECULATED, max_tokens)), **dict.fromkeys(widths, max_tokens)}
        shapes = [GraphShape(size, width) for size in sizes for width in sorted(most)]
        fitting = (shape for shape in shapes if shape.num_tokens <= most[shape.width])
        return cls(tuple(sorted(fitting, key=lambda shape: (-shape.num_tokens, shape.width))))

    def __iter__(self) -> Iterator[GraphShape]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)

    @property
    def widths(self) -> list[int]:
        """Return the widths with at least one shape, ascending."""
        return sorted({shape.width for shape in self.all})

    @property
    def max_batch_size(self) -> int:
        """Return the largest batch size of any width."""
        return max(shape.batch_size for shape in self.all)

    @property
    def max_tokens(self) -> int:
        """Return the tokens of the largest shape."""
        return max(shape.num_tokens for shape in self.all)

    def find(self, num_rows: int, width: int) -> GraphShape | None:
        """Return the smallest shape that holds `num_rows` rows of `width` tokens, if any does."""
        fitting = []
        for captured in (w for w in self.widths if w >= width):
            sizes = sorted(shape.batch_size for shape in self.all if shape.width == captured)
            if sizes[-1] >= num_rows:
                fitting.append(GraphShape(sizes[bisect_left(sizes, num_rows)], captured))
        return min(fitting, key=lambda shape: shape.num_tokens, default=None)
