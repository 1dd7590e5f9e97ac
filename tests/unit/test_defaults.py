"""What `--model-path` alone comes to on a GPU and on a CPU."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from golden import DATA
from processes import output_of

from dlm_serve.scheduling.graph_shapes import BATCH_SIZES

SCRIPT = Path(__file__).parent / "server_defaults.py"
SGLANGS = {
    "reasoning_parser": None,
    "chunked_prefill_size": None,
    "cores": None,
    "cuda_graph_max_bs_decode": None,
    "disable_prefill_cuda_graph": False,
    "disable_radix_cache": False,
    "max_total_tokens": None,
    "mem_fraction_static": None,
    "page_size": None,
    "threads": None,
}
ALL_CORES_BUT_ONE = str(max(1, len(os.sched_getaffinity(0)) - 1))
OURS = {**SGLANGS, "prefill_decode_interval": 2, "prefill_decode_interval_min_bs": 4}
ON_GPU = {**OURS, "dtype": "auto", "max_running_requests": BATCH_SIZES[-1]}
ON_CPU = {
    **OURS,
    "dtype": "auto",
    "max_running_requests": 64,
    "max_total_tokens": 1 << 16,
    "threads": ALL_CORES_BUT_ONE,
}
UNCUT = {
    "chunked_prefill_size": -1,
    "disable_prefill_cuda_graph": True,
    "disable_radix_cache": True,
    "mem_fraction_static": 0.8,
}
IN_BLOCKS = {"disable_prefill_cuda_graph": True}
NO_TOKEN_STEPS = {"cuda_graph_max_bs_decode": 1}

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("nld-trained-b8", {"device": "cuda"}, {**ON_GPU, "dtype": "bfloat16"}),
    ("nld-trained-b8", {"device": "cpu"}, {**ON_CPU, "dtype": "float32"}),
    ("nld-trained-b8", {"device": "cpu", "threads": "3"}, {**ON_CPU, "dtype": "float32", "threads": "3"}),
    ("nld-trained-b8", {"device": "cuda", "dtype": "float16"}, {**ON_GPU, "dtype": "float16"}),
    (
        "nld-trained-b8",
        {"device": "cuda", "max_running_requests": 9},
        {**ON_GPU, "dtype": "bfloat16", "max_running_requests": 9},
    ),
    (
        "nld-trained-b8",
        {"device": "cuda", "prefill_decode_interval": 0},
        {**ON_GPU, "dtype": "bfloat16", "prefill_decode_interval": 0, "prefill_decode_interval_min_bs": 0},
    ),
    ("efficient_dlm/edlm-b8", {"device": "cuda"}, {**ON_GPU, **UNCUT, **NO_TOKEN_STEPS, "dtype": "bfloat16"}),
    ("efficient_dlm/edlm-b8", {"device": "cpu"}, {**ON_CPU, **UNCUT, "dtype": "float32"}),
    (
        "efficient_dlm/edlm-b8",
        {"device": "cuda", "mem_fraction_static": 0.5},
        {**ON_GPU, **UNCUT, **NO_TOKEN_STEPS, "dtype": "bfloat16", "mem_fraction_static": 0.5},
    ),
    ("sdlm/sdlm-d4-tied", {"device": "cuda"}, {**ON_GPU, "dtype": "bfloat16"}),
    (
        "bd3lm/bd3lm-b4",
        {"device": "cuda"},
        {**ON_GPU, **IN_BLOCKS, **NO_TOKEN_STEPS, "dtype": "bfloat16", "page_size": 4},
    ),
    (
        "bd3lm/bd3lm-b4",
        {"device": "cuda", "cuda_graph_max_bs_decode": 8},
        {**ON_GPU, **IN_BLOCKS, "cuda_graph_max_bs_decode": 8, "dtype": "bfloat16", "page_size": 4},
    ),
    ("no dtype", {"device": "cuda"}, {**ON_GPU, "dtype": "bfloat16"}),
    ("nld-trained-b8", {"device": "cuda", "tp_size": 2}, {**ON_GPU, "dtype": "bfloat16"}),
    (
        "nld-trained-b8",
        {"device": "cpu", "tp_size": 2, "dp_size": 2, "cores": "0|1|2|3"},
        {**ON_CPU, "dtype": "float32", "threads": "1", "cores": "0|1|2|3"},
    ),
    ("nld-trained-b8", {"device": "cuda", "quantization": "fp8"}, {**ON_GPU, "dtype": "bfloat16"}),
    ("quantised", {"device": "cuda"}, {**ON_GPU, "dtype": "bfloat16"}),
    ("nld-trained-b8", {"device": "cpu", "quantization": "fp8"}, {"refused": ["quantization", "fp8"]}),
    ("nld-trained-b8", {"device": "cpu", "quantization": "fp8", "interpreted": "1"}, {**ON_CPU, "dtype": "float32"}),
    ("quantised", {"device": "cpu"}, {"refused": ["quantization", "gptq"]}),
    ("bd3lm/bd3lm-b4", {"device": "cuda", "quantization": "fp8"}, {"refused": ["--quantization", "fp8"]}),
    (
        "nld-trained-b8",
        {"device": "cpu", "reasoning_parser": "auto"},
        {**ON_CPU, "dtype": "float32", "reasoning_parser": "qwen3"},
    ),
    (
        "nld-trained-b8",
        {"device": "cpu", "reasoning_parser": "deepseek-r1"},
        {"refused": ["--reasoning-parser", "deepseek-r1"]},
    ),
    ("nld-trained-b8", {"device": "cpu", "enable_trace": True}, {"refused": ["--enable-trace", True]}),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What all cases come to, from one process."""
    source = DATA / "nld-trained-b8"
    config = json.loads((source / "config.json").read_text())
    configs = {
        "no dtype": {name: value for name, value in config.items() if "dtype" not in name},
        "quantised": {**config, "quantization_config": {"quant_method": "gptq"}},
    }
    paths = {}
    for name, changed in configs.items():
        paths[name] = tmp_path_factory.mktemp(name)
        for file in source.iterdir():
            (paths[name] / file.name).symlink_to(file)
        (paths[name] / "config.json").unlink()
        (paths[name] / "config.json").write_text(json.dumps(changed))
    given = [json.dumps({"model_path": str(paths.get(name, DATA / name)), **asked}) for name, asked, _ in CASES]
    return [json.loads(line) for line in output_of(SCRIPT, *given).splitlines() if line.startswith("{")]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{name} {asked}" for name, asked, _ in CASES])
def test_defaults(found: list[dict[str, Any]], number: int) -> None:
    assert found[number] == CASES[number][2]
