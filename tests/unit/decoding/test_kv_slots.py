"""A row writes KV only into its own slots, and only where that KV is committed."""

from __future__ import annotations

import pytest
import torch

from dlm_serve.decoding.kv_slots import NO_SLOT, read_slots, write_slots

MAX_LEN = 12


def slot_table(dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """Three requests behind the padding row 0; every slot but 0 belongs to exactly one of them."""
    slots = 1 + torch.randperm(3 * MAX_LEN, generator=torch.Generator().manual_seed(0)).view(3, MAX_LEN)
    return torch.cat([torch.zeros(1, MAX_LEN, dtype=torch.int64), slots]).to(dtype)


def written(
    table: torch.Tensor, rows: torch.Tensor, starts: torch.Tensor, kept_len: torch.Tensor, width: int
) -> torch.Tensor:
    """The slots of contiguous rows that keep the KV of their first `kept_len` tokens."""
    columns = torch.arange(width)[None, :]
    return write_slots(table, rows, starts[:, None] + columns, columns < kept_len[:, None])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("width", [1, 4, 5])
def test_each_new_token_has_the_slot_of_its_position(width: int, dtype: torch.dtype) -> None:
    """Rows in any order, of any length, some keeping nothing: against one look-up per token."""
    table = slot_table(dtype)
    short = max(1, width - 1)
    cases = [(3, 0, width), (1, 7, 1), (2, 3, 0), (1, 2, short), (0, 0, 1)]
    rows, starts, kept_len = (torch.tensor(column) for column in zip(*cases, strict=True))
    slots = written(table, rows.int(), starts, kept_len, width)
    wanted = [
        [int(table[row, start + i]) if i < length else NO_SLOT for i in range(width)] for row, start, length in cases
    ]
    assert slots.dtype == torch.int64
    assert slots.tolist() == wanted


def test_a_row_that_keeps_no_kv_writes_to_no_request() -> None:
    slots = written(slot_table(), torch.tensor([1, 2]), torch.tensor([0, 5]), torch.tensor([0, 0]), 4)
    assert slots.tolist() == [[NO_SLOT] * 4] * 2


@pytest.mark.parametrize(
    ("committed", "new_len"), [(MAX_LEN - 1, 1), (MAX_LEN - 3, 3), (MAX_LEN - 8, 8)], ids=["one", "some", "full"]
)
def test_the_end_of_the_table_is_usable(committed: int, new_len: int) -> None:
    """Padding columns that would lie past the table are not looked up."""
    table = slot_table()
    slots = written(table, torch.tensor([2]), torch.tensor([committed]), torch.tensor([new_len]), 8)
    assert slots.tolist() == [table[2, committed:].tolist() + [NO_SLOT] * (8 - new_len)]


def test_live_rows_never_share_a_slot() -> None:
    slots = written(slot_table(), torch.tensor([1, 2, 3]), torch.tensor([4, 0, 8]), torch.tensor([4, 3, 4]), 4)
    used = slots[slots != NO_SLOT].tolist()
    assert len(used) == len(set(used)) == 11


@pytest.mark.parametrize("window", [None, 1, 5, MAX_LEN, 2 * MAX_LEN])
def test_a_row_reads_the_last_committed_slots(window: int | None) -> None:
    table = slot_table()
    rows, lens = torch.tensor([3, 1, 2, 0]), torch.tensor([MAX_LEN, 0, 4, 0])
    read = read_slots(table, rows, lens, window)
    for row, length, read_row, read_len in zip(rows, lens, read.rows, read.lens, strict=True):
        kept = min(length, MAX_LEN if window is None else window)
        assert torch.equal(read.table[read_row, :read_len], table[row, length - kept : length])
