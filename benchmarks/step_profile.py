"""Profile block steps with SGLang's own profiler: where the time goes, and whether the host waits."""

from __future__ import annotations

import gzip
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from serving import Server

END_OF_STEP = "_advance_kernel"
"""The last kernel of each block step."""


def measure(server: Server, action: Callable[[], object]) -> dict[str, Any]:
    """Return microseconds per step by kernel and CUDA runtime calls per step while `action` runs block steps."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"output_dir": folder, "activities": ["CPU", "GPU"]}
        requests.post(f"{server.url}/start_profile", json=options, timeout=60).raise_for_status()
        action()
        requests.post(f"{server.url}/stop_profile", timeout=120).raise_for_status()
        return summary(_read(Path(folder)))


def _read(folder: Path) -> list[dict[str, Any]]:
    """Return the events of the trace once it is written."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for file in folder.rglob("*.trace.json.gz"):
            try:
                events: list[dict[str, Any]] = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
            except (EOFError, ValueError):
                break  # still being written
            return events
        time.sleep(1)
    raise TimeoutError("the server wrote no trace within 60 s")


def summary(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means over the middle steps of the trace."""
    kernels = sorted((e for e in events if e.get("cat") == "kernel"), key=lambda e: float(e["ts"]))
    ends = [float(e["ts"]) for e in kernels if END_OF_STEP in e["name"]]
    first, last = len(ends) // 4, 3 * len(ends) // 4
    steps, start, stop = last - first, ends[first], ends[last]
    times: Counter[str] = Counter()
    for event in kernels:
        if start < event["ts"] <= stop:
            times[event["name"][:60]] += event["dur"] / steps
    runtime = Counter(e["name"] for e in events if e.get("cat") == "cuda_runtime" and start < e["ts"] <= stop)
    return {
        "step_us": (stop - start) / steps,
        "busy_us": sum(times.values()),
        "kernels_us": dict(times.most_common(20)),
        "runtime_calls": {name: count / steps for name, count in runtime.items()},
    }
