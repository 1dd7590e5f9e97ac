"""Compiles the Hopper kernel and prints what ptxas says of it. Not in pytest, where Triton interprets."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from dlm_kernels.block_attention import hopper
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource
from triton.knobs import nvidia

POINTERS = {"slot_table": "*i32", "slot_rows": "*i64", "prefix_lens": "*i64"}
VISIBLE = dict.fromkeys(("visible_prefix", "visible_lo", "visible_hi"), "*i32")
FLOATS = {"partial": "*fp32", "log_sum": "*fp32", "scale": "fp32"}


def compile_for_hopper(dtype: str, head_dim: int, width: int) -> str:
    """The kernel's PTX for 4 query heads for each of 8 KV heads."""
    launched = {"M": hopper.TILE, "N": hopper.KEYS, "STAGES": hopper.STAGES, "num_warps": hopper.NUM_WARPS}
    constants = {"W": width, "G": 4, "D": head_dim, "HKV": 8, **launched}
    names = list(inspect.signature(hopper.split_kernel.fn).parameters)
    types = {**dict.fromkeys(("q", "k", "v", "k_cache", "v_cache"), f"*{dtype}"), **POINTERS, **VISIBLE, **FLOATS}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in constants | {"scale": 0}}
    constexprs = {(names.index(name),): value for name, value in constants.items()}
    source = GluonASTSource(hopper.split_kernel, signature=signature, constexprs=constexprs, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": hopper.NUM_WARPS})
    return str(compiled.asm["ptx"])


if __name__ == "__main__":
    ptx = compile_for_hopper(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        command = [nvidia.ptxas.path, "-v", "--gpu-name", "sm_90a", str(path), "-o", str(path.with_suffix(".cubin"))]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stderr)
