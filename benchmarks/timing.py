"""Time calls on a GPU."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch


def median_us(calls: Sequence[Callable[[], object]], repeats: int = 20) -> float:
    """Return microseconds per call: the median over replays of one CUDA graph of all `calls`.

    Calls that read different memory from the call before find none of it in the cache.
    """
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times: list[float] = []
    for _ in range(repeats + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times[3:])


def copy_bandwidth() -> float:
    """Return the bytes read and written per second by a large copy."""
    import triton

    source = torch.empty(1 << 30, dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    milliseconds: float = triton.testing.do_bench(lambda: target.copy_(source), return_mode="median")
    return 2 * source.numel() * 4 / (milliseconds * 1e-3)
