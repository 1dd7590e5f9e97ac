"""CUDA graphs of batches whose rows are all of one token, beside vLLM's, whose rows are as wide as a block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor

_ROW_COUNTS = (1, 2, 4, *range(8, 257, 8))
_MOST_TOKENS = 2048
"""Of a batch of wide rows that a graph is worth its time to capture and its memory."""


def capture_sizes(width: int, num_rows: int) -> list[int]:
    """Return the numbers of tokens for which graphs are captured: up to `num_rows` rows, of one token or of `width`."""
    counts = sorted({min(count, num_rows) for count in _ROW_COUNTS})
    # Wide rows are far apart: half of the counts of many of them do.
    wide = [count for count in counts if count <= 8 or count % 16 == 0 or count == num_rows]
    return sorted({*counts, *(count * width for count in wide if count * width <= _MOST_TOKENS)})


def with_single_tokens(original: Callable[[Any], None], manager: Any) -> None:
    """Around `CudaGraphManager._init_candidates`: let rows of one token have full graphs, too.

    vLLM captures them for one width of rows, unless another model drafts.
    """
    original(manager)
    mode = manager.cudagraph_mode
    if not (mode and mode.separate_routine() and mode.decode_mode() == CUDAGraphMode.FULL):
        return
    if manager.decode_query_len == 1:
        return
    sizes = sorted({min(size, manager.max_num_reqs) for size in manager.compilation_config.cudagraph_capture_sizes})
    ours = [
        BatchExecutionDescriptor(CUDAGraphMode.FULL, num_tokens=size, num_reqs=size, uniform_token_count=1)
        for size in sizes
    ]
    # A manager captures the largest first, and takes the first candidate for a number of tokens that fits.
    all_full = [*ours, *manager._capture_descs.get(CUDAGraphMode.FULL, [])]
    manager._capture_descs[CUDAGraphMode.FULL] = sorted(all_full, key=lambda each: each.num_tokens, reverse=True)
    for num_tokens in range(sizes[-1] + 1):
        smallest = next(each for each in ours if each.num_tokens >= num_tokens)
        manager._candidates.setdefault((num_tokens, 0), []).insert(0, smallest)
