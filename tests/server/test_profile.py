"""`/start_profile` records what the scheduler's process runs, on a machine without a GPU, too."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from serving import Server, generate_body


def test_a_profile(trained: Server, tmp_path: Path) -> None:
    """Of the next steps, written once they are over."""
    asked = {"activities": ["CPU"], "num_steps": 3, "output_dir": str(tmp_path), "with_stack": False}
    assert trained.post("/start_profile", asked).status_code == 200
    trained.generate_all([generate_body([145, 20, 30], 40, ignore_eos=True)], 1)
    trained.flush_cache()  # waits until the scheduler idles
    (trace,) = tmp_path.glob("*.trace.json.gz")
    names = {event["name"] for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert "aten::mm" in names
