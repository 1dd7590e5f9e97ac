"""Run by test_block_graphs.py in a process of its own: graphs against the eager step they were made of.

The backend that captures and replays is replaced by one that keeps the programs and runs them again, which is
what a CUDA graph does. Everything around it is the real one: shapes, padding, buffers, what is copied where.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from types import SimpleNamespace
from unittest import mock

import torch

from dlm_serve.decoding import Emission, Mode, Policy, Prediction, Rows, RowSettings, advance_, predict
from dlm_serve.engine import block_graphs
from dlm_serve.engine.attention import DlmAttentionBackend
from dlm_serve.engine.block_graphs import BlockGraphs
from dlm_serve.engine.prefill import StretchBackend
from dlm_serve.engine.shapes import Shapes
from dlm_serve.families import FAMILIES, Family

MASK, VOCAB_SIZE, MAX_WIDTH, NUM_REQUESTS = 3, 11, 8, 12


def settings_of(family: Family, number: int) -> RowSettings:
    """The requests of a family in turn: its modes and algorithms, each with short and long blocks."""
    mode = family.modes[number % len(family.modes)]
    turn = number // len(family.modes)
    longest = family.policy.longest_block(MAX_WIDTH, MAX_WIDTH)
    block_length = 1 if mode is Mode.AUTOREGRESSIVE else (longest // 2, longest - 1, longest)[turn % 3]
    algorithm = turn % max(1, len(family.algorithms))
    return RowSettings(mode, block_length, 0.5, 4, None, number, (), family.policy.is_seeded, algorithm)


class Step:
    """A step whose logits are a function of token, column and committed length."""

    def __init__(self, family: Family) -> None:
        self.policy: Policy = family.policy
        settings = [settings_of(family, i) for i in range(NUM_REQUESTS)]
        rows = Rows.of(settings, MAX_WIDTH).start_block(torch.arange(NUM_REQUESTS) % 7 + 4, MASK)
        self.table = Rows.table(NUM_REQUESTS + 1, MAX_WIDTH, MASK, "cpu")
        self.table.scatter_(torch.arange(1, NUM_REQUESTS + 1), rows)

    def forward(
        self, indices: torch.Tensor, committed_lens: torch.Tensor, width: int, on_slots_read: object = None
    ) -> tuple[torch.Tensor, Prediction]:
        tokens = self.table.gather(indices, width).tokens
        columns, ids = torch.arange(width)[None, :, None], torch.arange(VOCAB_SIZE)
        logits = (tokens[..., None] * 7 + columns * 3 + committed_lens[:, None, None] * 5 + ids * 13) % 17
        return logits.float(), predict(logits.float(), MASK, mask_in_denominator=self.policy.mask_in_denominator)

    def advance(self, indices: torch.Tensor, prediction: Prediction) -> Emission:
        return advance_(self.table, indices, prediction, MASK, self.policy)


class Replaying:
    """In place of SGLang's backend."""

    def __init__(self, owner: object) -> None:
        self._programs: dict[object, Callable[[], None]] = {}

    @contextlib.contextmanager
    def capture_session(self, stream: object) -> Iterator[None]:
        yield

    def capture_one(self, key: object, program: Callable[[], None]) -> None:
        program()
        self._programs[key] = program

    def replay(self, key: object, batch: object) -> None:
        self._programs[key]()


def graphs_of(step: Step) -> BlockGraphs:
    """Real graphs but for the capturing, of widths 4 and 8 and at most 64 tokens."""
    with (
        mock.patch.object(block_graphs, "FullCudaGraphBackend", Replaying),
        mock.patch.object(block_graphs, "graph_capture", return_value=contextlib.nullcontext()),
        mock.patch.object(block_graphs, "get_or_create_global_graph_capture_stream", return_value=None),
        mock.patch.object(torch.cuda, "mem_get_info", return_value=(0, 0)),
    ):
        runner = SimpleNamespace(device="cpu", shared_read_done_event="of the step before")
        shapes = Shapes.within((4, 8), NUM_REQUESTS, 64)
        return BlockGraphs(step, runner, shapes, VOCAB_SIZE, torch.float32)  # type: ignore[arg-type]


def check(family: Family) -> None:
    eager, captured = Step(family), Step(family)
    graphs = graphs_of(captured)
    torch.manual_seed(0)
    committed_lens = torch.arange(NUM_REQUESTS + 1)
    earlier: list[tuple[torch.Tensor, torch.Tensor]] = []
    ways = set()
    for number in range(300):
        indices = torch.randperm(NUM_REQUESTS)[: int(torch.randint(1, NUM_REQUESTS + 1, ()))] + 1
        width = family.policy.row_width(int(eager.table.block_length[indices].max()))
        ways.add(graphs.is_captured(len(indices), width))
        logits, prediction = graphs.forward(indices, committed_lens[indices], width)
        expected_logits, expected = eager.forward(indices, committed_lens[indices], logits.shape[1])
        assert torch.equal(logits, expected_logits)
        assert torch.equal(prediction.ids, expected.ids)
        if number % 2:  # as sampling does
            ids = torch.randint(4, VOCAB_SIZE, expected.ids.shape)
            prediction, expected = replace(prediction, ids=ids), replace(expected, ids=ids)
        emission, wanted = graphs.advance(indices, prediction), eager.advance(indices, expected)
        assert torch.equal(emission.tokens, wanted.tokens)
        assert torch.equal(emission.lens, wanted.lens)
        for field in fields(Rows):
            ours, theirs = getattr(captured.table, field.name)[1:], getattr(eager.table, field.name)[1:]
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        committed_lens[indices] += wanted.lens
        earlier.append((emission.tokens, emission.tokens.clone()))
    assert ways == {True, False}
    assert all(torch.equal(tokens, copy) for tokens, copy in earlier), "a later step overwrote an emission"
    runner = graphs._model_runner
    graphs.forward(torch.arange(1, 13), committed_lens[1:], 8)
    assert runner.shared_read_done_event is None, "an eager step must be waited for as a whole"


def check_decode_graphs() -> None:
    """SGLang's own graphs are of single-token decode: how prompts attend takes no part in them."""
    backend = object.__new__(DlmAttentionBackend)
    backend.decode_backend = mock.Mock()
    backend.prefill_backend = object.__new__(StretchBackend)
    backend.init_cuda_graph_state(4, 4)
    backend.decode_backend.init_cuda_graph_state.assert_called_once_with(4, 4)


if __name__ == "__main__":
    check_decode_graphs()
    for family in FAMILIES:
        check(family)
