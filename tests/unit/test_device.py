"""What a step is made of stays on its device and never asks it for a value: CUDA graphs and the overlap need both.

PyTorch's fake tensors tell without a GPU: they have a device, and no values that could be asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import pytest
import torch
from dlm_kernels.one_forward.layout import RowLayout
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
)

from dlm_serve.decoding import Commit, Prediction, Rows, TokenChoice, WindowCommit
from dlm_serve.decoding.commit.draft_windows import draft_windows, keeping_last, verify
from dlm_serve.decoding.kv_slots import read_slots, write_slots
from dlm_serve.decoding.one_forward import GroupForm, advance, lay_out, plan_groups
from dlm_serve.families import FAMILIES

MASK, BATCH, WIDTH, POOL, VOCAB_SIZE, CONTEXT = 3, 5, 8, 9, 11, 64
each_commit = pytest.mark.parametrize("commit", [f.commit for f in FAMILIES], ids=[f.name for f in FAMILIES])


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
    ids = zeros(num_rows, WIDTH, dtype=torch.int64)
    return Prediction(ids, zeros(num_rows, WIDTH), zeros(num_rows, WIDTH), ids)


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


def columns(rows: Rows, *_: object) -> RowLayout:
    """What the kernel that lays out rows returns; it is not run here."""
    kinds = (torch.int64, torch.int64, *[torch.int32] * 4, torch.int64, torch.bool, torch.bool)
    return RowLayout(*(zeros(*rows.tokens.shape, dtype=kind) for kind in kinds))


@each_commit
def test_steps(commit: Commit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlm_kernels.one_forward.layout.lay_out", columns)
    rows = table().gather(indices(), WIDTH)
    spec = commit.attention_spec(rows, indices(), MASK)
    tensors = [tensor for value in vars(spec).values() for tensor in (value if isinstance(value, tuple) else (value,))]
    assert {tensor.device.type for tensor in tensors} == {"cuda"}
    after, output = commit.advance(rows, prediction(), MASK)
    assert_alike(after, rows)
    assert (output.tokens.shape, output.lens.dtype) == ((BATCH, WIDTH), torch.int32)
    table().scatter_(indices(), after)


def test_speculation_in_one_forward() -> None:
    rows = table().gather(indices(), WIDTH)
    layout = lay_out(rows, plan_groups(rows, MASK), GroupForm.MASKS, MASK)
    assert {tensor.device.type for tensor in vars(layout).values()} == {"cuda"}
    after, output = advance(rows, layout.anchors, prediction(), MASK)
    assert_alike(after, rows)
    assert (output.tokens.shape, output.lens.dtype) == ((BATCH, WIDTH), torch.int32)


def test_drafts() -> None:
    rows, number = table().gather(indices()), 4
    tried = draft_windows(rows, number, WIDTH, MASK)
    keeping_last(WindowCommit().attention_spec(tried, zeros(BATCH * number, dtype=torch.int64), MASK), rows, number)
    after, _ = verify(rows, prediction(BATCH * number).ids.view(BATCH, number, WIDTH), MASK)
    assert_alike(after, rows)


@pytest.mark.parametrize("window", [None, 16])
def test_slots(window: int | None) -> None:
    slot_table, starts = zeros(POOL, CONTEXT, dtype=torch.int32), indices()
    slots = read_slots(slot_table, indices(), starts, window)
    assert {tensor.device.type for tensor in vars(slots).values()} == {"cuda"}
    assert write_slots(slot_table, indices(), prediction().ids, prediction().ids > 0).shape == (BATCH, WIDTH)


def test_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of shuffled rows, too; the kernels that choose tokens are not run here."""
    found = tuple(tensor.flatten() for tensor in vars(prediction()).values())
    monkeypatch.setattr("dlm_serve.decoding.token_choice.sample_token", lambda *_, **__: found)
    logits = zeros(BATCH, WIDTH, VOCAB_SIZE, dtype=torch.bfloat16)
    choice = TokenChoice(MASK, may_shuffle=True)
    assert_alike(choice.predict(logits, prediction().ids, table().gather(indices())), prediction())
