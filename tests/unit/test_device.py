"""What a step is made of stays on its device and never asks it for a value: CUDA graphs and the overlap need both.

PyTorch's fake tensors tell without a GPU: they have a device, and no values that could be asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
)

from dlm_serve.decoding import Nucleus, Policy, Prediction, Rows, Sampling, advance, carry, hand_out, layout
from dlm_serve.decoding.hypotheses import hypotheses, keeping_last, start_draft, verify
from dlm_serve.decoding.sampling import random_confidence, resample
from dlm_serve.families import FAMILIES, SDLM
from dlm_serve.kv.slots import read_slots, write_slots

MASK, BATCH, WIDTH, POOL, VOCAB_SIZE, CONTEXT = 3, 5, 8, 9, 11, 64
each_policy = pytest.mark.parametrize("policy", [f.policy for f in FAMILIES], ids=[f.name for f in FAMILIES])


@pytest.fixture(autouse=True)
def _fake() -> Iterator[None]:
    with FakeTensorMode():
        yield


def zeros(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(size, dtype=dtype, device="cuda")


def table() -> Rows:
    return Rows.zeros(POOL, WIDTH, "cuda")


def indices() -> torch.Tensor:
    return zeros(BATCH, dtype=torch.int64)


def prediction(num_rows: int = BATCH) -> Prediction:
    return Prediction(zeros(num_rows, WIDTH, dtype=torch.int64), zeros(num_rows, WIDTH), zeros(num_rows, WIDTH))


def assert_alike(found: object, expected: object) -> None:
    """Tensors of the same shapes and dtypes on the same device: a buffer of one takes the other as it is."""
    for field in fields(found):  # type: ignore[arg-type]
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        assert (ours.shape, ours.dtype, ours.device) == (theirs.shape, theirs.dtype, theirs.device), field.name


def test_fake_tensors_tell() -> None:
    with pytest.raises(DataDependentOutputException):
        indices().tolist()
    with pytest.raises(FakeTensorDeviceMismatchError):
        indices() + torch.zeros(BATCH)


@each_policy
def test_steps(policy: Policy) -> None:
    rows = table().gather(indices(), WIDTH)
    entry = layout(rows, policy)
    assert {tensor.device.type for tensor in vars(entry).values()} == {"cuda"}
    after, emission = advance(rows, prediction(), MASK, policy)
    assert_alike(after, rows)
    assert (emission.tokens.shape, emission.lens.dtype) == ((BATCH, WIDTH), torch.int32)
    table().scatter_(indices(), after)


@each_policy
def test_hand_out_and_carry(policy: Policy) -> None:
    rows = table().gather(indices())
    assert_alike(hand_out(rows, policy)[0], rows)
    assert_alike(carry(rows, indices(), MASK, policy)[0], rows)


def test_drafts() -> None:
    rows, number = start_draft(table().gather(indices()), prediction().ids), 4
    tried = hypotheses(rows, number, WIDTH, MASK)
    keeping_last(layout(tried, SDLM.policy), rows, number)
    after, _ = verify(rows, prediction(BATCH * number).ids.view(BATCH, number, WIDTH), MASK)
    assert_alike(after, rows)


@pytest.mark.parametrize("window", [None, 16])
def test_slots(window: int | None) -> None:
    slot_table, starts = zeros(POOL, CONTEXT, dtype=torch.int32), indices()
    slots = read_slots(slot_table, indices(), starts, window)
    assert {tensor.device.type for tensor in vars(slots).values()} == {"cuda"}
    assert write_slots(slot_table, indices(), starts, starts.int(), WIDTH).shape == (BATCH, WIDTH)


@pytest.mark.parametrize("nucleus", Nucleus)
def test_sampling(nucleus: Nucleus) -> None:
    floats, ints = zeros(BATCH), zeros(BATCH, dtype=torch.int32)
    sampling = Sampling(floats, ints, floats, floats, indices(), all_greedy=False, needs_filter=True, nucleus=nucleus)
    positions, logits = prediction().ids, zeros(BATCH, WIDTH, VOCAB_SIZE, dtype=torch.bfloat16)
    assert_alike(resample(prediction(), logits, positions, sampling, MASK), prediction())
    assert random_confidence(indices(), positions).device.type == "cuda"
