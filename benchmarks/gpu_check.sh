#!/usr/bin/env bash
# All that needs a GPU: the kernels and the engine are right, and then how fast they are.
#   bash benchmarks/gpu_check.sh            # PYTHON=... for another interpreter
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
export DLM_TEST_DEVICE=cuda
"$PYTHON" -m pytest -q tests/unit/test_block_attention_kernels.py tests/unit/test_sample_token.py \
	tests/unit/test_block_advance_triton.py
"$PYTHON" -m pytest -q tests/gpu
"$PYTHON" benchmarks/block_attention.py
"$PYTHON" benchmarks/sample_token.py
"$PYTHON" benchmarks/agreement.py
"$PYTHON" benchmarks/bf16_agreement.py
"$PYTHON" benchmarks/decode_speed.py
"$PYTHON" benchmarks/release_shapes.py
"$PYTHON" benchmarks/quantised_nano.py
