"""Make batches as a function of the step alone: documents packed into rows, noisy blocks cut from their answers.

No state is kept between batches, so a resumed run reads what the uninterrupted one would.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from dlm_serve.training.corpus import Corpus
from dlm_serve.training.layout import CLEAN, Layout
from dlm_serve.training.tokenizer import EOS_ID

PADDING = -1
"""The document number of padding."""

_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """B rows of L clean tokens, then N = blocks x block_size noisy ones, not masked yet; T = L + N."""

    tokens: torch.Tensor  # [B, T] int64
    layout: Layout  # [B, T]
    is_answer: torch.Tensor  # [B, L] bool: the clean tokens that belong to an answer
    source: torch.Tensor  # [B, N] int64: the clean column of each noisy token, PADDING behind the answer's end
    block_size: int

    @property
    def num_clean(self) -> int:
        """Return L, the number of clean columns, which come first."""
        return self.is_answer.shape[1]

    def to(self, device: torch.device) -> Batch:
        """Return a copy on `device` without waiting for it."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        layout = Layout(*(move(getattr(self.layout, field.name)) for field in fields(Layout)))
        return Batch(move(self.tokens), layout, move(self.is_answer), move(self.source), self.block_size)

    def pin(self) -> Batch:
        """Return a copy in page-locked memory, from which a GPU can read while the host goes on."""
        layout = Layout(*(getattr(self.layout, field.name).pin_memory() for field in fields(Layout)))
        return Batch(
            self.tokens.pin_memory(), layout, self.is_answer.pin_memory(), self.source.pin_memory(), self.block_size
        )

    def clean(self) -> Batch:
        """Return the batch without its noisy blocks."""
        width = self.num_clean
        layout = Layout(*(getattr(self.layout, field.name)[:, :width].contiguous() for field in fields(Layout)))
        return Batch(self.tokens[:, :width], layout, self.is_answer, self.source[:, :0], self.block_size)


@dataclass(frozen=True)
class _Order:
    """One epoch: the documents in order, and where in it each row starts."""

    documents: _Ints
    row_starts: _Ints  # [rows + 1]


class Packing:
    """The batches of a corpus; item `step` is that step's batch."""

    def __init__(
        self, corpus: Corpus, batch_size: int, sequence_length: int, num_blocks: int, block_size: int, seed: int
    ) -> None:
        self._corpus, self._seed = corpus, seed
        self._batch_size, self._length = batch_size, sequence_length
        self._num_blocks, self._block_size = num_blocks, block_size
        self._doc_starts = np.concatenate(([0], np.cumsum(corpus.lens, dtype=np.int64)))
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of `step`, in which one epoch may follow another."""
        epoch, order = 0, self._order(0)
        row = step * self._batch_size
        documents: list[_Ints] = []
        while len(documents) < self._batch_size:
            num_rows = len(order.row_starts) - 1
            if row >= num_rows:
                row, epoch = row - num_rows, epoch + 1
                order = self._order(epoch)
                continue
            documents.append(order.documents[order.row_starts[row] : order.row_starts[row + 1]])
            row += 1
        return self._assemble(documents, np.random.default_rng([self._seed, step]))

    def _draw_order(self, epoch: int) -> _Order:
        """Return documents in random order, each in the current row or, if it does not fit, in the next."""
        documents = np.random.default_rng([self._seed, epoch]).permutation(len(self._corpus.lens))
        documents = documents[self._corpus.lens[documents] <= self._length]
        starts, filled = [0], 0
        for place, length in enumerate(self._corpus.lens[documents].tolist()):
            if filled + length > self._length:
                starts.append(place)
                filled = 0
            filled += length
        return _Order(documents, np.array([*starts, len(documents)]))

    def _assemble(self, rows: list[_Ints], random: np.random.Generator) -> Batch:
        documents = np.concatenate(rows)
        row = np.repeat(np.arange(len(rows)), [len(each) for each in rows])
        lens = self._corpus.lens[documents].astype(np.int64)
        ends = np.cumsum(lens)
        column = ends - lens
        column -= column[np.searchsorted(row, row)]  # each row starts at column 0
        clean = self._clean_part(documents, row, lens, column)
        noisy = self._noisy_part(documents, row, lens, column, random)
        joined = {name: torch.from_numpy(np.concatenate((clean[name], noisy[name]), axis=1)) for name in _FIELDS}
        layout = Layout(*(joined[field.name].to(torch.int32) for field in fields(Layout)))
        is_answer = torch.from_numpy(clean["is_answer"].astype(bool))
        return Batch(joined["tokens"], layout, is_answer, torch.from_numpy(noisy["source"]), self._block_size)

    def _clean_part(self, documents: _Ints, row: _Ints, lens: _Ints, column: _Ints) -> dict[str, _Ints]:
        position = np.arange(lens.sum()) - np.repeat(np.cumsum(lens) - lens, lens)
        target = np.repeat(row * self._length + column, lens) + position
        answer_starts = self._corpus.answer_starts[documents]

        def fill(padding: int, values: _Ints) -> _Ints:
            flat = np.full(self._batch_size * self._length, padding, dtype=np.int64)
            flat[target] = values
            return flat.reshape(self._batch_size, self._length)

        return {
            "tokens": fill(EOS_ID, self._corpus.tokens[np.repeat(self._doc_starts[documents], lens) + position]),
            "document": fill(PADDING, np.repeat(np.arange(len(documents)), lens)),
            "position": fill(0, position),
            "block": np.full((self._batch_size, self._length), CLEAN),
            "horizon": fill(1, position + 1),
            "is_answer": fill(0, (position >= np.repeat(answer_starts, lens)).astype(np.int64)),
        }

    def _noisy_part(
        self, documents: _Ints, row: _Ints, lens: _Ints, column: _Ints, random: np.random.Generator
    ) -> dict[str, _Ints]:
        """Cut each answer from some offset on into whole blocks, filled up with EOS; keep those that fit into the row.

        Half of the answers start at offset 0, as diffusion does, the others anywhere, as self-speculation does.
        """
        size, first = self._block_size, self._corpus.answer_starts[documents].astype(np.int64)
        room = np.maximum(lens - first - 1, 1)  # places of a first token that leave something to predict
        offset = np.where(random.random(len(room)) < 0.5, 0, random.integers(0, size, len(room)) % room)
        count = np.maximum(0, -(-(lens - first - 1 - offset) // size))
        doc = np.repeat(np.arange(len(documents)), count)
        nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        slot = np.arange(count.sum()) - np.searchsorted(row[doc], row[doc])
        fits = slot < self._num_blocks
        doc, nth, slot = doc[fits], nth[fits], slot[fits]

        start = (first + offset)[doc] + nth * size
        position = start[:, None] + np.arange(size)
        inside = position < lens[doc][:, None]
        index = self._doc_starts[documents[doc]][:, None] + np.minimum(position, lens[doc][:, None] - 1)

        def fill(padding: int, values: _Ints) -> _Ints:
            blocks = np.full((self._batch_size, self._num_blocks, size), padding, dtype=np.int64)
            blocks[row[doc], slot] = values
            return blocks.reshape(self._batch_size, -1)

        return {
            "tokens": fill(EOS_ID, np.where(inside, self._corpus.tokens[index], EOS_ID)),
            "document": fill(PADDING, doc[:, None]),
            "position": fill(0, position),
            "block": np.tile(np.repeat(np.arange(self._num_blocks), size), (self._batch_size, 1)),
            "horizon": fill(0, start[:, None]),
            "source": fill(PADDING, np.where(inside, column[doc][:, None] + position, PADDING)),
        }


_FIELDS = ("tokens", *(field.name for field in fields(Layout)))
