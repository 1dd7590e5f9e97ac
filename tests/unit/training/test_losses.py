"""The losses, against loops over single tokens."""

from __future__ import annotations

import pytest
import torch

from dlm_serve.training.config import ConvertPhase
from dlm_serve.training.corpus import Corpus
from dlm_serve.training.layout import CLEAN
from dlm_serve.training.losses import autoregressive_kl, autoregressive_loss, draft_loss, joint_loss
from dlm_serve.training.model import DiffusionModel
from dlm_serve.training.packing import PADDING, Batch, Packing

LENGTH, BLOCKS, SIZE = 192, 4, 16


@pytest.fixture(scope="module")
def batch(corpus: Corpus) -> Batch:
    return Packing(corpus, 2, LENGTH, BLOCKS, SIZE, seed=4)[0]


def log_probs(model: DiffusionModel, batch: Batch, noisy: torch.Tensor, *, drafting: bool = False) -> torch.Tensor:
    tokens = torch.cat((batch.tokens[:, :LENGTH], noisy), dim=1)
    where = batch.layout.block != CLEAN if drafting else None
    hidden = model(tokens, batch.layout.position, batch.layout.dense_mask(), where)
    result: torch.Tensor = model.diffusion_head(hidden).log_softmax(-1).detach()
    return result


def expected_ar_loss(batch: Batch, log_p: torch.Tensor) -> float:
    terms = [
        -float(log_p[row, column - 1, batch.tokens[row, column]])
        for row in range(2)
        for column in range(1, LENGTH)
        if batch.is_answer[row, column]
    ]
    return sum(terms) / len(terms)


def test_autoregressive_loss_is_that_of_the_answers(model: DiffusionModel, batch: Batch) -> None:
    clean = batch.clean()
    loss = autoregressive_loss(model, clean, clean.layout.dense_mask())["ar_loss"]
    assert float(loss) == pytest.approx(
        expected_ar_loss(batch, log_probs(model, batch, batch.tokens[:, LENGTH:])), rel=1e-4
    )


@pytest.mark.parametrize("weighted", [True, False])
def test_joint_loss_is_both_losses_by_their_weights(model: DiffusionModel, batch: Batch, weighted: bool) -> None:
    phase = ConvertPhase(
        steps=1, learning_rate=1.0, ar_loss_weight=0.5, dlm_loss_weight=2.0, weight_by_mask_ratio=weighted
    )
    losses = joint_loss(model, batch, batch.layout.dense_mask(), phase, torch.Generator().manual_seed(0))

    blocks = batch.tokens[:, LENGTH:].view(2, BLOCKS, SIZE)
    masked, ratio = phase.masking.draw(blocks, torch.Generator().manual_seed(0))
    noisy = torch.where(masked, model.mask_token_id, blocks).view(2, -1)
    real = batch.layout.document[:, LENGTH:] != PADDING
    noisy = torch.where(real, noisy, batch.tokens[:, LENGTH:])
    log_p = log_probs(model, batch, noisy)
    terms = [
        -float(log_p[row, LENGTH + i, batch.tokens[row, LENGTH + i]])
        / (float(ratio[row, i // SIZE, 0]) if weighted else 1)
        for row in range(2)
        for i in range(BLOCKS * SIZE)
        if masked.view(2, -1)[row, i] and real[row, i]
    ]
    dlm_loss = sum(terms) / len(terms)
    assert float(losses["dlm_loss"]) == pytest.approx(dlm_loss, rel=1e-4)
    assert float(losses["loss"]) == pytest.approx(0.5 * expected_ar_loss(batch, log_p) + 2.0 * dlm_loss, rel=1e-4)


def test_draft_loss_reads_as_far_as_a_verification_does(model: DiffusionModel, batch: Batch) -> None:
    model.adapt(rank=4, alpha=8.0)
    with torch.no_grad():  # a model that always says the commonest token, so that some drafts are accepted
        model.diffusion_head.weight.zero_()
        model.diffusion_head.weight[batch.tokens[:, LENGTH:].flatten().mode().values] = 1.0
    losses = draft_loss(model, batch, batch.layout.dense_mask())

    blocks = batch.tokens[:, LENGTH:].view(2, BLOCKS, SIZE)
    noisy = torch.where(torch.arange(SIZE) == 0, blocks, model.mask_token_id).view(2, -1)
    log_p = log_probs(model, batch, noisy, drafting=True)
    greedy = log_p.argmax(-1)
    terms, accepted, num_blocks = [], 0, 0
    for row in range(2):
        for block in range(BLOCKS):
            columns = [int(column) for column in batch.source.view(2, BLOCKS, SIZE)[row, block]]
            if columns[1] == PADDING:
                continue
            num_blocks += 1
            for i in range(1, SIZE):
                if columns[i] == PADDING:
                    break
                verified = int(greedy[row, columns[i] - 1])
                place = LENGTH + block * SIZE + i
                terms.append(-float(log_p[row, place, verified]))
                if not int(greedy[row, place]) == verified == int(blocks[row, block, i]):
                    break
                accepted += 1
    assert float(losses["loss"]) == pytest.approx(sum(terms) / len(terms), rel=1e-4)
    assert float(losses["accepted"]) == pytest.approx(accepted / num_blocks)


def test_draft_loss_moves_the_adapter_alone(model: DiffusionModel, batch: Batch) -> None:
    adapter = model.adapt(rank=4, alpha=8.0)
    torch.autograd.backward(draft_loss(model, batch, batch.layout.dense_mask())["loss"])
    assert all(weight.grad is not None for weight in adapter)
    assert sum(weight.grad is not None for weight in model.parameters()) == len(adapter)


def test_kl_is_zero_to_itself_and_positive_to_another(model: DiffusionModel, batch: Batch) -> None:
    clean = batch.clean()
    mask = clean.layout.dense_mask()
    other = DiffusionModel(model.config)
    other.initialise(seed=1)
    assert autoregressive_kl(model, model, clean, mask) == pytest.approx(0.0, abs=1e-6)
    assert autoregressive_kl(model, other, clean, mask) > 0.01
