"""Run block steps as CUDA graphs: one pair per (batch size, width), whatever mix of phases its rows are in."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from sglang.srt.distributed.parallel_state import graph_capture
from sglang.srt.model_executor.runner.base_cuda_graph_runner import freeze_gc
from sglang.srt.model_executor.runner_backend.full_cuda_graph_backend import FullCudaGraphBackend
from sglang.srt.model_executor.runner_utils.capture_mode import model_capture_mode
from sglang.srt.model_executor.runner_utils.pool import get_or_create_global_graph_capture_stream
from sglang.srt.model_executor.runner_utils.shared_read_event import make_external_event

from dlm_serve.decoding import Prediction, StepOutput
from dlm_serve.errors import ConfigError
from dlm_serve.options.server_file import RoutingConfig
from dlm_serve.scheduling.graph_shapes import GraphShape, GraphShapes
from dlm_serve.sglang.engine.block_step import BlockForward, BlockStep
from dlm_serve.sglang.protocols import ModelRunnerLike

logger = logging.getLogger(__name__)


class BlockGraphs:
    """Runs block steps by replaying graphs; steps of shapes that were not captured run eagerly."""

    def __init__(
        self,
        step: BlockStep,
        model_runner: ModelRunnerLike,
        shapes: GraphShapes,
    ) -> None:
        start, free = time.perf_counter(), torch.cuda.mem_get_info()[0]
        self._step = step
        self._model_runner = model_runner
        self._shapes = shapes
        self._find = cache(shapes.find)
        self._warn_once = cache(self._warn)
        self._buffers = _Buffers.of(shapes, step.table.width, model_runner.device)
        self._logits: dict[GraphShape, torch.Tensor] = {}
        self.device_module = torch.cuda  # read by the backend
        self._backend = FullCudaGraphBackend(self)
        # Later work of the scheduler waits for this alone, not for the whole forward.
        self._slots_read = make_external_event(torch.cuda)
        self._capture()
        logger.info(
            "Captured CUDA graphs of block steps: %d shapes, widths %s, up to %d tokens, in %.1f s, %.2f GB",
            len(shapes),
            shapes.widths,
            shapes.max_tokens,
            time.perf_counter() - start,
            (free - torch.cuda.mem_get_info()[0]) / 1e9,
        )

    @classmethod
    def capture(
        cls,
        step: BlockStep,
        model_runner: ModelRunnerLike,
        routing: RoutingConfig,
        widths: Sequence[int],
        budgets: Sequence[int],
    ) -> BlockGraphs:
        """Capture graphs of `widths`, for as many requests as may run and tokens as the memory of `routing` allows.

        Those of `budgets` are for few requests.
        """
        config = model_runner.model_config
        logits_dtype = model_runner.model.logits_processor.dtype_of(model_runner.dtype)
        # A token's logits, and what the layers hold at a time.
        num_bytes = config.vocab_size * logits_dtype.itemsize + 16 * config.hidden_size * model_runner.dtype.itemsize
        max_tokens = int(routing.graph_memory_gb * 1e9 / num_bytes)
        shapes = GraphShapes.within(widths, model_runner.req_to_token_pool.size, max_tokens, budgets)
        if not len(shapes):
            raise ConfigError(
                "routing.graph_memory_gb",
                routing.graph_memory_gb,
                f"fits only {max_tokens} tokens, fewer than the smallest of routing.widths",
                "raise it, or start with --disable-decode-cuda-graph",
            )
        return cls(step, model_runner, shapes)

    def forward(self, indices: torch.Tensor, committed_lens: torch.Tensor, width: int) -> BlockForward:
        """See `Step`; W is the captured width."""
        num_rows = indices.shape[0]
        shape = self._find(num_rows, width)
        if shape is None:
            self._warn_once(width)
            return self._step.forward(indices, committed_lens, width)
        self._buffers.load(shape, indices, committed_lens)
        self._backend.replay(("forward", shape), None)
        self._model_runner.shared_read_done_event = self._slots_read
        prediction = self._buffers.predicted(shape).select(slice(num_rows))
        return BlockForward(self._logits[shape][:num_rows], prediction, True, lambda: self._advance(shape, num_rows))

    def captured_rows(self, width: int) -> int:
        """See `Step`."""
        return max((shape.batch_size for shape in self._shapes if shape.width >= width), default=0)

    def _advance(self, shape: GraphShape, num_rows: int) -> StepOutput:
        """Advance the rows of the last `forward`, which had this shape and so many real rows."""
        self._backend.replay(("advance", shape), None)
        output = self._buffers.emitted(shape)
        # The next replay overwrites the buffers, perhaps before SGLang has copied them to the host.
        return StepOutput(output.tokens[:num_rows].clone(), output.lens[:num_rows].clone())

    def _warn(self, width: int) -> None:
        logger.warning(
            "a block step of width %d is larger than all captured ones (%d tokens, %d rows) and runs without a CUDA "
            "graph, as later ones will: routing.graph_memory_gb bounds the tokens",
            width,
            self._shapes.max_tokens,
            self._shapes.max_batch_size,
        )

    def _capture(self) -> None:
        stream = get_or_create_global_graph_capture_stream()
        with (
            freeze_gc(enable_cudagraph_gc=False),
            model_capture_mode(),
            graph_capture(stream=stream),
            self._backend.capture_session(stream),
        ):
            for shape in self._shapes:
                self._backend.capture_one(("forward", shape), self._forward_program(shape))
                self._backend.capture_one(("advance", shape), self._advance_program(shape))

    def _forward_program(self, shape: GraphShape) -> Callable[[], None]:
        def run() -> None:
            indices, committed_lens = self._buffers.inputs(shape)
            rows = self._step.table.gather(indices, shape.width)
            spec = self._step.spec_of(rows, committed_lens)
            logits, prediction = self._step.run(rows, indices, spec, self._record_slots_read)
            self._logits[shape] = _borrowed(logits)
            self._buffers.anchors_of(shape).copy_(spec.anchors)
            kept = self._buffers.predicted(shape)
            for buffer, tensor in zip(_tensors(kept), _tensors(prediction), strict=True):
                buffer.copy_(tensor)

        return run

    def _advance_program(self, shape: GraphShape) -> Callable[[], None]:
        def run() -> None:
            indices, _ = self._buffers.inputs(shape)
            output = self._step.advance(indices, self._buffers.anchors_of(shape), self._buffers.predicted(shape))
            kept = self._buffers.emitted(shape)
            kept.tokens.copy_(output.tokens)
            kept.lens.copy_(output.lens)

        return run

    def _record_slots_read(self) -> None:
        if self._slots_read is not None and torch.cuda.is_current_stream_capturing():
            self._slots_read.record()


@dataclass(frozen=True)
class _Buffers:
    """What the graphs of all shapes read and write: memory that lasts, its first part used by each shape."""

    indices: torch.Tensor  # [B] int64
    committed_lens: torch.Tensor  # [B] int64
    anchors: torch.Tensor  # [T] int32
    ids: torch.Tensor  # [T] int64
    confidence: torch.Tensor  # [T] float32
    entropy: torch.Tensor  # [T] float32
    second_ids: torch.Tensor  # [T] int64
    tokens: torch.Tensor  # [T] int64
    lens: torch.Tensor  # [B] int32
    longest: int
    """The most tokens that a row emits."""

    @classmethod
    def of(cls, shapes: GraphShapes, longest: int, device: Any) -> _Buffers:
        rows, tokens = shapes.max_batch_size, shapes.max_tokens

        def make(*size: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        return cls(
            indices=make(rows, dtype=torch.int64),
            committed_lens=make(rows, dtype=torch.int64),
            anchors=make(tokens, dtype=torch.int32),
            ids=make(tokens, dtype=torch.int64),
            confidence=make(tokens, dtype=torch.float32),
            entropy=make(tokens, dtype=torch.float32),
            second_ids=make(tokens, dtype=torch.int64),
            tokens=make(tokens, dtype=torch.int64),
            lens=make(rows, dtype=torch.int32),
            longest=longest,
        )

    def load(self, shape: GraphShape, indices: torch.Tensor, committed_lens: torch.Tensor) -> None:
        """Write the inputs of a step, padded with row 0, which no request owns."""
        num_rows = indices.shape[0]
        for buffer, tensor in ((self.indices, indices), (self.committed_lens, committed_lens)):
            buffer[:num_rows].copy_(tensor)
            buffer[num_rows : shape.batch_size].zero_()

    def inputs(self, shape: GraphShape) -> tuple[torch.Tensor, torch.Tensor]:
        return self.indices[: shape.batch_size], self.committed_lens[: shape.batch_size]

    def anchors_of(self, shape: GraphShape) -> torch.Tensor:
        return _cut(self.anchors, shape.batch_size, shape.width)

    def predicted(self, shape: GraphShape) -> Prediction:
        tensors = self.ids, self.confidence, self.entropy, self.second_ids
        return Prediction(*(_cut(each, shape.batch_size, shape.width) for each in tensors))

    def emitted(self, shape: GraphShape) -> StepOutput:
        tokens = _cut(self.tokens, shape.batch_size, min(shape.width, self.longest))
        return StepOutput(tokens, self.lens[: shape.batch_size])


def _cut(buffer: torch.Tensor, batch_size: int, width: int) -> torch.Tensor:
    return buffer[: batch_size * width].view(batch_size, width)


def _borrowed(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view of memory in the graphs' pool, which the next replay of any of them may overwrite."""
    if not tensor.is_cuda:
        return tensor
    from sglang.srt.model_executor.runner_backend_utils.weak_ref_tensor import weak_ref_tensors  # not on a CPU

    borrowed: torch.Tensor = weak_ref_tensors(tensor)
    return borrowed


def _tensors(prediction: Prediction) -> tuple[torch.Tensor, ...]:
    return prediction.ids, prediction.confidence, prediction.entropy, prediction.second_ids
