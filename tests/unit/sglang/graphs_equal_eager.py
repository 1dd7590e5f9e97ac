"""Run by test_block_graphs.py in a process of its own: graphs against the eager step they were made of.

The backend that captures and replays is replaced by one that keeps the programs and runs them again, which is
what a CUDA graph does. Everything around it is the real one: shapes, padding, buffers, what is copied where.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from dlm_serve.decoding import AttentionSpec, Mode, ModeSettings, Phase, Prediction, RowOptions, Rows
from dlm_serve.families import FAMILIES, Family
from dlm_serve.scheduling.graph_shapes import GraphShapes
from dlm_serve.sglang.engine import block_graphs
from dlm_serve.sglang.engine.attention import DlmAttentionBackend
from dlm_serve.sglang.engine.block_graphs import BlockGraphs
from dlm_serve.sglang.engine.block_step import BlockStep
from dlm_serve.sglang.engine.prompt_attention import SpanBackend

MASK, VOCAB_SIZE, MAX_WIDTH, NUM_REQUESTS = 3, 11, 8, 12
NUM_STEPS = 40
BUDGET = 16
"""Tokens of rows that speculate in one forward, more than the table's."""


def settings_of(family: Family, number: int) -> RowOptions:
    """The requests of a family in turn: its modes and algorithms, each with short and long blocks."""
    mode = family.modes[number % len(family.modes)]
    turn = number // len(family.modes)
    longest = family.commit.longest_block(MAX_WIDTH, MAX_WIDTH)
    block_length = 1 if mode is Mode.AUTOREGRESSIVE else (longest // 2, longest - 1, longest)[turn % 3]
    algorithm = family.algorithms[turn % len(family.algorithms)] if family.algorithms else None
    in_one_forward = mode is Mode.SELF_SPECULATION and turn % 2 == 1
    settings = ModeSettings(mode, block_length, 0.5, 4, algorithm=algorithm, budget=BUDGET if in_one_forward else None)
    options = family.commit.row_options(settings, number, (), VOCAB_SIZE)
    return replace(options, temperature=1.5, top_k=1 + 2 * (number % 3), top_p=0.9)


class Step(BlockStep):
    """A step whose logits are a function of token, column and committed length."""

    def __init__(self, family: Family) -> None:
        options = [settings_of(family, i) for i in range(NUM_REQUESTS)]
        rows = Rows.of(options, MAX_WIDTH).start_block(torch.arange(NUM_REQUESTS) % 7 + 4, MASK)
        table = Rows.table(NUM_REQUESTS + 1, MAX_WIDTH, MASK, "cpu")
        table.scatter_(torch.arange(1, NUM_REQUESTS + 1), rows)
        runner: Any = SimpleNamespace(shared_read_done_event=None)
        super().__init__(runner, table, family.commit, family.token_choice(MASK))

    def run(
        self,
        rows: Rows,
        indices: torch.Tensor,
        spec: AttentionSpec,
        on_slots_read: Callable[[], None] | None = None,
    ) -> tuple[torch.Tensor, Prediction]:
        ids = torch.arange(VOCAB_SIZE)
        logits = (spec.tokens[..., None] * 7 + spec.positions[..., None] * 3 + ids * 13) % 17
        return logits.float(), self.choice.predict(logits.float(), spec.predicted_positions, rows)


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


def graphs_of(step: Step, budgets: Sequence[int]) -> BlockGraphs:
    """Real graphs but for the capturing, of widths 4, 8 and `budgets`, and at most 64 tokens."""
    with (
        mock.patch.object(block_graphs, "FullCudaGraphBackend", Replaying),
        mock.patch.object(block_graphs, "graph_capture", return_value=contextlib.nullcontext()),
        mock.patch.object(block_graphs, "get_or_create_global_graph_capture_stream", return_value=None),
        mock.patch.object(torch.cuda, "mem_get_info", return_value=(0, 0)),
    ):
        runner = SimpleNamespace(device="cpu", shared_read_done_event="of the step before")
        step._model_runner = runner
        shapes = GraphShapes.within((4, 8), NUM_REQUESTS, 64, budgets)
        return BlockGraphs(step, runner, shapes)


def check(family: Family) -> None:
    eager, captured = Step(family), Step(family)
    graphs = graphs_of(captured, [BUDGET] if Mode.SELF_SPECULATION in family.modes else [])
    torch.manual_seed(0)
    committed_lens = torch.arange(NUM_REQUESTS + 1)
    earlier: list[tuple[torch.Tensor, torch.Tensor]] = []
    ways = set()
    for number in range(NUM_STEPS):
        indices = torch.randperm(NUM_REQUESTS)[: int(torch.randint(1, NUM_REQUESTS + 1, ()))] + 1
        width = family.commit.row_width(int(eager.table.block_length[indices].max()))
        if number % 3 and (eager.table.phase[indices] == Phase.SPECULATE).any():
            width = BUDGET
        forward = graphs.forward(indices, committed_lens[indices], width)
        expected = eager.forward(indices, committed_lens[indices], forward.prediction.ids.shape[1])
        ways.add(forward.is_captured)
        assert torch.equal(forward.logits, expected.logits)
        assert torch.equal(forward.prediction.ids, expected.prediction.ids)
        if number % 2:  # as SGLang's sampler does for autoregressive rows
            ids = torch.randint(4, VOCAB_SIZE, expected.prediction.ids.shape)
            for prediction in (forward.prediction, expected.prediction):
                prediction.ids.copy_(ids)
        output, wanted = forward.advance(), expected.advance()
        assert torch.equal(output.tokens, wanted.tokens)
        assert torch.equal(output.lens, wanted.lens)
        for field in fields(Rows):
            ours, theirs = getattr(captured.table, field.name)[1:], getattr(eager.table, field.name)[1:]
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        committed_lens[indices] += wanted.lens
        earlier.append((output.tokens, output.tokens.clone()))
    assert ways == {True, False}
    assert all(torch.equal(tokens, copy) for tokens, copy in earlier), "a later step overwrote an output"
    runner = graphs._model_runner
    graphs.forward(torch.arange(1, 13), committed_lens[1:], 8)
    assert runner.shared_read_done_event is None, "an eager step must be waited for as a whole"


def check_decode_graphs() -> None:
    """SGLang's own graphs are of single-token decode: how prompts attend takes no part in them."""
    backend = object.__new__(DlmAttentionBackend)
    backend.decode_backend = mock.Mock()
    backend.prefill_backend = object.__new__(SpanBackend)
    backend.init_cuda_graph_state(4, 4)
    backend.decode_backend.init_cuda_graph_state.assert_called_once_with(4, 4)


if __name__ == "__main__":
    check_decode_graphs()
    for family in FAMILIES:
        check(family)
