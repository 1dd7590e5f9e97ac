#!/bin/sh
# Install dlm-serve beside the SGLang that is there, or with it, and check that it supports that version.
#
#   docker/install.sh PACKAGE [OPTION OF PIP ...]
#
# PACKAGE is a folder or a wheel. PYTHON names the interpreter (python3 by default).
set -eu
python=${PYTHON:-python3}

# pip keeps what fulfils our requirements, such as the base image's build of PyTorch.
"$python" -m pip install --no-cache-dir "$@"
"$python" -c 'from dlm_serve.sglang.compat import require; require(())'
"$python" -m dlm_serve --help > /dev/null
