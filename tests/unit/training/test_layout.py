"""Who sees whom, against the definition written as loops."""

from __future__ import annotations

import pytest
import torch

from dlm_serve.training.corpus import Corpus
from dlm_serve.training.layout import CLEAN, Layout, attend
from dlm_serve.training.model import DiffusionModel
from dlm_serve.training.packing import PADDING, Batch, Packing

LENGTH, BLOCKS, SIZE = 256, 4, 32


@pytest.fixture(scope="module")
def batch(corpus: Corpus) -> Batch:
    return Packing(corpus, 2, LENGTH, BLOCKS, SIZE, seed=3)[0]


def sees(layout: Layout, row: int, query: int, key: int) -> bool:
    """Block diffusion over [clean | noisy], said in words."""
    document: list[int] = layout.document[row].tolist()
    position: list[int] = layout.position[row].tolist()
    block: list[int] = layout.block[row].tolist()
    if document[query] != document[key]:
        return False
    if block[query] == CLEAN:
        return block[key] == CLEAN and position[key] <= position[query]
    if block[key] == CLEAN:
        block_start = min(p for p, b in zip(position, block, strict=True) if b == block[query])
        return position[key] < block_start
    return block[key] == block[query]


def test_the_mask_is_the_definition(batch: Batch) -> None:
    layout, width = batch.layout, LENGTH + BLOCKS * SIZE
    mask = layout.dense_mask()
    assert mask.shape == (2, 1, width, width)
    queries = [*range(0, LENGTH, 7), *range(LENGTH, width, 5)]
    for row in range(2):
        real = [i for i in queries if layout.document[row, i] != PADDING]
        assert any(layout.block[row, i] != CLEAN for i in real)
        for query in real:
            assert mask[row, 0, query].tolist() == [sees(layout, row, query, key) for key in range(width)]


@pytest.mark.filterwarnings("ignore::UserWarning")  # FlexAttention says that it is not compiled here
def test_both_backends_attend_alike(batch: Batch) -> None:
    torch.manual_seed(0)
    width = batch.tokens.shape[1]
    q, k, v = torch.randn(2, 4, width, 16), torch.randn(2, 2, width, 16), torch.randn(2, 2, width, 16)
    dense = attend(q, k, v, batch.layout.dense_mask())
    flex = attend(q, k, v, batch.layout.block_mask())
    assert torch.allclose(dense, flex, atol=1e-5)


def test_a_packed_document_computes_what_it_does_alone(batch: Batch, model: DiffusionModel) -> None:
    packed = model(batch.tokens, batch.layout.position, batch.layout.dense_mask())
    document = sorted(set(batch.layout.document[0].tolist()))[2]
    chosen = (batch.layout.document[0] == document).nonzero().squeeze(1)
    assert (batch.layout.block[0, chosen] != CLEAN).any(), "a document with noisy blocks is wanted"
    alone = Layout(*(each[:1, chosen] for each in vars(batch.layout).values()))
    expected = model(batch.tokens[:1, chosen], alone.position, alone.dense_mask())
    assert torch.allclose(packed[:1, chosen], expected, atol=1e-5)


def test_a_clean_token_is_blind_to_noise(batch: Batch, model: DiffusionModel) -> None:
    noised = batch.tokens.clone()
    noised[:, LENGTH:] = model.mask_token_id
    mask, position = batch.layout.dense_mask(), batch.layout.position
    before, after = model(batch.tokens, position, mask), model(noised, position, mask)
    assert torch.equal(before[:, :LENGTH], after[:, :LENGTH])
    assert not torch.equal(before[:, LENGTH:], after[:, LENGTH:])
