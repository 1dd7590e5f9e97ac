"""Run by test_defaults.py: what the plugin sets on SGLang's arguments, each case a JSON object of those given.

`threads`, `cores` and `interpreted` are no arguments but variables of the environment. Of a case that is refused, the
field and its value.
"""

from __future__ import annotations

import json
import os
import sys

from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs

from dlm_serve.errors import ConfigError
from dlm_serve.platform.ranks import CORES_VARIABLE, THREADS_VARIABLE
from dlm_serve.sglang.defaults import prepare_server_args

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
    "prefill_decode_interval",
    "prefill_decode_interval_min_bs",
    "reasoning_parser",
)
SET = {"threads": THREADS_VARIABLE, "cores": CORES_VARIABLE}
READ = {**SET, "interpreted": "TRITON_INTERPRET"}

if __name__ == "__main__":
    load_plugins()
    for case in sys.argv[1:]:
        arguments = json.loads(case)
        for name, variable in READ.items():
            os.environ.pop(variable, None)
            if name in arguments:
                os.environ[variable] = arguments.pop(name)
        server_args = ServerArgs(**arguments)
        try:
            assert prepare_server_args(server_args)
        except ConfigError as error:
            sys.stdout.write(json.dumps({"refused": [error.field, error.value]}) + "\n")
            continue
        found = {name: getattr(server_args, name) for name in FIELDS}
        environment = {name: os.environ.get(variable) for name, variable in SET.items()}
        sys.stdout.write(json.dumps({**found, **environment}) + "\n")
