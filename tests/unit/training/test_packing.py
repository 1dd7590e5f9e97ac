"""Batches hold whole documents and true blocks of their answers, and depend on nothing but the step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dlm_serve.training.corpus import Corpus
from dlm_serve.training.packing import PADDING, Batch, Packing
from dlm_serve.training.tokenizer import EOS_ID

ROWS, LENGTH, BLOCKS, SIZE = 4, 256, 8, 16


@pytest.fixture(scope="module")
def packing(corpus: Corpus) -> Packing:
    return Packing(corpus, ROWS, LENGTH, BLOCKS, SIZE, seed=1)


def documents_of(corpus: Corpus) -> dict[tuple[int, ...], int]:
    """Each document's tokens, and where its answer starts."""
    ends = np.cumsum(corpus.lens)
    return {
        tuple(corpus.tokens[end - length : end].tolist()): int(start)
        for end, length, start in zip(ends, corpus.lens, corpus.answer_starts, strict=True)
    }


def clean_documents(batch: Batch) -> list[tuple[int, torch.Tensor]]:
    """Row and columns of each document in the clean part."""
    document = batch.layout.document[:, : batch.num_clean]
    return [
        (row, (document[row] == number).nonzero().squeeze(1))
        for row in range(len(document))
        for number in sorted(set(document[row].tolist()))
        if number != PADDING
    ]


def test_clean_rows_are_whole_documents_with_their_answers_marked(corpus: Corpus, packing: Packing) -> None:
    known, batch = documents_of(corpus), packing[0]
    found = clean_documents(batch)
    assert len(found) > ROWS
    for row, columns in found:
        tokens = tuple(batch.tokens[row, columns].tolist())
        start = known[tokens]
        assert batch.layout.position[row, columns].tolist() == list(range(len(tokens)))
        assert batch.is_answer[row, columns].tolist() == [i >= start for i in range(len(tokens))]


def test_noisy_blocks_are_stretches_of_answers_filled_up_with_eos(corpus: Corpus, packing: Packing) -> None:
    known, batch = documents_of(corpus), packing[0]
    documents = {int(batch.layout.document[row, columns[0]]): (row, columns) for row, columns in clean_documents(batch)}
    blocks = batch.tokens[:, LENGTH:].view(ROWS, BLOCKS, SIZE)
    places = {name: each[:, LENGTH:].view(ROWS, BLOCKS, SIZE) for name, each in vars(batch.layout).items()}
    offsets = set()
    for row, slot in (places["document"][..., 0] != PADDING).nonzero().tolist():
        own_row, columns = documents[int(places["document"][row, slot, 0])]
        tokens = tuple(batch.tokens[own_row, columns].tolist())
        start = int(places["position"][row, slot, 0])
        assert own_row == row
        assert known[tokens] <= start < len(tokens) - 1
        assert places["position"][row, slot].tolist() == list(range(start, start + SIZE))
        assert places["horizon"][row, slot].tolist() == [start] * SIZE
        real = list(tokens[start : start + SIZE])
        assert blocks[row, slot].tolist() == real + [EOS_ID] * (SIZE - len(real))
        source = batch.source.view(ROWS, BLOCKS, SIZE)[row, slot].tolist()
        assert source == [int(column) for column in columns[start : start + SIZE]] + [PADDING] * (SIZE - len(real))
        offsets.add((start - known[tokens]) % SIZE)
    assert 0 in offsets
    assert len(offsets) > 1


def test_a_batch_depends_on_the_step_alone(corpus: Corpus, packing: Packing) -> None:
    again = Packing(corpus, ROWS, LENGTH, BLOCKS, SIZE, seed=1)
    assert torch.equal(again[5].tokens, packing[5].tokens)
    assert not torch.equal(packing[6].tokens, packing[5].tokens)


def test_an_epoch_holds_each_document_once(corpus: Corpus) -> None:
    packing = Packing(corpus, ROWS, LENGTH, BLOCKS, SIZE, seed=2)
    seen: list[tuple[int, ...]] = []
    step = 0
    while len(seen) < len(corpus.lens):
        batch = packing[step]
        seen += [tuple(batch.tokens[row, columns].tolist()) for row, columns in clean_documents(batch)]
        step += 1
    assert set(seen[: len(corpus.lens)]) == set(documents_of(corpus))
