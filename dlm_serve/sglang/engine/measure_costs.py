"""Measure what forwards cost before the first request: a few replays of what was captured, over real KV lengths."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version

import numpy as np
import torch
from sglang.srt.runtime_context import get_parallel
from sglang.srt.utils import broadcast_pyobj

from dlm_serve.decoding import Phase, RowOptions, Rows
from dlm_serve.routing.cost_file import CostFile
from dlm_serve.routing.costs import CostTable, interpolated
from dlm_serve.scheduling.graph_shapes import BATCH_SIZES
from dlm_serve.sglang.engine.block_step import Step
from dlm_serve.sglang.engine.decode_forward import DecodeForward
from dlm_serve.sglang.protocols import ModelRunnerLike

logger = logging.getLogger(__name__)

SHORT, LONG = 256, 2048
"""Tokens of context at which forwards are measured."""

LEAST_SIZE = 8
"""Rows that are measured of blocks of every width, captured or not: larger forwards are taken to go on in proportion.
Of rows that speculate in one forward none but captured ones run, and one is measured in any case."""

LONG_SIZES = (8, 64)
"""Numbers of rows that are measured at both: the difference says what a token of context costs. Where fewer run, the
most that do."""

REPLAYS = 3


class CostMeasurement:
    """Runs forwards over rows that no request owns, in a table and a KV pool that nothing uses yet."""

    def __init__(self, step: Step, decode: DecodeForward, table: Rows, runner: ModelRunnerLike) -> None:
        self._step = step
        self._decode = decode
        self._table = table
        self._slot_table = runner.req_to_token_pool.req_to_token
        self._num_slots = runner.token_to_kv_pool.size

    def run(self, widths: Sequence[int], captured_rows: Callable[[int], int], max_rows: int) -> CostTable:
        """Return the costs of forwards of up to `max_rows` rows and of `widths`.

        `captured_rows` says up to how many rows of a width are captured: of larger forwards only small ones are
        measured.
        """
        start = time.perf_counter()
        sizes = [size for size in BATCH_SIZES if size <= max_rows]
        decode_ms, decode_context_ms = self._curve(self._decode_ms, sizes, max_rows)
        curves = [
            self._curve(
                lambda rows, context, width=width: self._block_ms(rows, width, context),  # type: ignore[misc]
                [size for size in sizes if size <= max(captured_rows(width), self._least_size(width))],
                max_rows,
            )
            for width in widths
        ]
        self._restore()
        for width, (ms, _) in zip(widths, curves, strict=True):
            if width > self._table.width:  # of rows that speculate in one forward, which can be narrower
                ms[captured_rows(width) + 1 :] = np.inf
        logger.info("Measured the time of forwards in %.1f s", time.perf_counter() - start)
        return CostTable(
            tuple(widths),
            decode_ms,
            np.stack([ms for ms, _ in curves]),
            decode_context_ms,
            np.array([per_token for _, per_token in curves]),
        )

    def _least_size(self, width: int) -> int:
        return 1 if width > self._table.width else LEAST_SIZE

    def _curve(
        self, measure: Callable[[int, int], float], sizes: Sequence[int], max_rows: int
    ) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float64]], float]:
        """Return milliseconds by the number of rows without their context, and those of a token of context."""
        longest = self._slot_table.shape[1] - 2 * self._table.width
        context = max(min(SHORT, longest), 1)
        short = {size: measure(size, context) for size in sizes}
        long_sizes = [size for size in LONG_SIZES if size in short] or [max(short)]
        slopes = [
            (measure(size, LONG) - short[size]) / (size * (LONG - context))
            for size in long_sizes
            if longest >= LONG and size * LONG < self._num_slots
        ]
        per_token = max(slopes[-1], 0.0) if slopes else 0.0
        values = [ms - per_token * size * context for size, ms in short.items()]
        return interpolated(list(short), values, max_rows), per_token

    def _decode_ms(self, num_rows: int, context: int) -> float:
        indices, lens = self._prepare(num_rows, 1, context)
        on_host = torch.full((num_rows,), context, dtype=torch.int64)

        def forward() -> None:
            logits, _ = self._decode.logits(indices, lens, on_host)
            self._decode.emit(indices, logits.argmax(-1))

        return _median_ms(forward)

    def _block_ms(self, num_rows: int, width: int, context: int) -> float:
        indices, lens = self._prepare(num_rows, width, context)
        return _median_ms(lambda: self._step.forward(indices, lens, width).advance())

    def _prepare(self, num_rows: int, width: int, context: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Give rows 1 to `num_rows` blocks of `width` tokens, and slots of their own as far as there are enough.

        Return indices and lengths.
        """
        device = self._table.tokens.device
        span = min(context + 2 * self._table.width, self._slot_table.shape[1])
        slots = torch.arange(num_rows * span, device=device) % (self._num_slots - 1) + 1
        self._slot_table[1 : num_rows + 1, :span] = slots.view(num_rows, span).to(self._slot_table.dtype)
        indices = torch.arange(1, num_rows + 1, device=device)
        longest = self._table.width
        phase = Phase.DECODE if width == 1 else Phase.VERIFY if width <= longest else Phase.SPECULATE
        rows = Rows.of([RowOptions(phase, block_length=min(width, longest))], longest).to(device)
        rows = rows.gather(torch.zeros(num_rows, dtype=torch.int64, device=device))
        self._table.scatter_(indices, rows.start_block(torch.zeros_like(indices), 0))
        return indices, torch.full_like(indices, context)

    def _restore(self) -> None:
        """Leave tables as they were: empty but for row 0."""
        self._slot_table[1:] = 0
        indices = torch.arange(1, self._table.tokens.shape[0], device=self._table.tokens.device)
        self._table.scatter_(indices, Rows.zeros(len(indices), self._table.width, self._table.tokens.device))


def measured_costs(
    measurement: CostMeasurement,
    runner: ModelRunnerLike,
    widths: Sequence[int],
    captured_rows: Callable[[int], int],
    max_rows: int,
) -> CostTable:
    """Return the costs that were kept for this GPU, model and software; measure and keep them if there are none.

    All ranks of a tensor-parallel group measure together, and take what the first of them knows.
    """
    file = CostFile(_key_of(runner, widths, [captured_rows(width) for width in widths], max_rows))
    group = get_parallel().tp_group
    is_first = group.rank == group.ranks[0]
    kept = [file.read() if is_first else None]
    if group.world_size > 1:
        kept = broadcast_pyobj(kept, group.rank, group.cpu_group, src=group.ranks[0])
    if kept[0] is not None:
        return kept[0]
    costs = measurement.run(widths, captured_rows, max_rows)
    if is_first:
        file.write(costs)
    return costs


def _key_of(
    runner: ModelRunnerLike, widths: Sequence[int], captured_rows: Sequence[int], max_rows: int
) -> dict[str, object]:
    """Return all that costs depend on."""
    config = runner.model_config
    return {
        "gpu": torch.cuda.get_device_name(),
        "model": config.hf_config.to_dict() | {"_name_or_path": None},
        "dtype": str(runner.dtype),
        "quantization": config.quantization,
        "tp": get_parallel().tp_size,
        "attention": str(runner.attn_backend.decode_attention_backend_str),
        "adapter": runner.model.draft_adapter is not None,
        "widths": list(widths),
        "captured_rows": list(captured_rows),
        "max_rows": max_rows,
        "versions": {package: version(package) for package in ("dlm-serve", "sglang", "torch")},
    }


def _median_ms(forward: Callable[[], object]) -> float:
    forward()
    times: list[float] = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        forward()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[REPLAYS // 2]
