"""Run by test_defaults.py: what the plugin sets on SGLang's arguments, each case a JSON object of those given."""

from __future__ import annotations

import json
import sys

from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs

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
)

if __name__ == "__main__":
    load_plugins()
    for case in sys.argv[1:]:
        server_args = ServerArgs(**json.loads(case))
        assert prepare_server_args(server_args)
        sys.stdout.write(json.dumps({name: getattr(server_args, name) for name in FIELDS}) + "\n")
