"""What is kept of a request's blocks, and for how long."""

from __future__ import annotations

import torch

from dlm_serve.decoding import BlockHistory, Rows, Snapshot
from dlm_serve.decoding.history import MOST_FORWARDS


def table_of(*rows: tuple[list[int], int]) -> Rows:
    """A table with these tokens, each row with so many emitted."""
    table = Rows.zeros(len(rows), 4, "cpu")
    for i, (tokens, num_emitted) in enumerate(rows):
        table.tokens[i, : len(tokens)] = torch.tensor(tokens)
        table.new_len[i], table.num_emitted[i] = len(tokens), num_emitted
    return table


def test_a_step_is_kept_as_it_left_the_row_once_its_results_are_known() -> None:
    history, table = BlockHistory(), table_of(([5, 6], 0), ([7, 8, 9], 1))
    history.launch(Snapshot.of(table, torch.tensor([1])), 0)
    table.tokens[1] = 0
    assert history.forwards == []
    history.settle(num_output=10)
    assert history.forwards == [(9, [7, 8, 9])]


def test_steps_that_a_retraction_drops_are_forgotten() -> None:
    history, table = BlockHistory(), table_of(([5, 6], 0), ([7], 1))
    history.launch(Snapshot.of(table, torch.tensor([0, 1])), 0)
    history.restart()
    history.launch(Snapshot.of(table, torch.tensor([0, 1])), 1)
    history.settle(num_output=3)
    assert history.forwards == [(2, [7])]


def test_the_first_forwards_are_kept() -> None:
    history = BlockHistory()
    for number in range(MOST_FORWARDS + 5):
        history.add(number, [number])
    assert [start for start, _ in history.forwards] == list(range(MOST_FORWARDS))
