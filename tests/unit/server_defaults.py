"""Run by test_defaults.py: what the plugin sets on SGLang's arguments, each case a JSON object of those given.

`threads` is no argument but the environment's OMP_NUM_THREADS.
"""

from __future__ import annotations

import json
import os
import sys

from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs

from dlm_serve.sglang.defaults import CPU_THREADS_VARIABLE, prepare_server_args

FIELDS = (
    "chunked_prefill_size",
    "cuda_graph_max_bs_decode",
    "disable_prefill_cuda_graph",
    "disable_radix_cache",
    "dtype",
    "max_running_requests",
    "max_total_tokens",
    "mem_fraction_static",
    "page_size",
)

if __name__ == "__main__":
    load_plugins()
    for case in sys.argv[1:]:
        arguments = json.loads(case)
        os.environ.pop(CPU_THREADS_VARIABLE, None)
        if "threads" in arguments:
            os.environ[CPU_THREADS_VARIABLE] = arguments.pop("threads")
        server_args = ServerArgs(**arguments)
        assert prepare_server_args(server_args)
        found = {name: getattr(server_args, name) for name in FIELDS}
        sys.stdout.write(json.dumps({**found, "threads": os.environ.get(CPU_THREADS_VARIABLE)}) + "\n")
