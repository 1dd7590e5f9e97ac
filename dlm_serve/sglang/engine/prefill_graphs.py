"""Which CUDA graphs SGLang captures of prefills.

By default it captures a prefill in pieces and launches attention from Python between them. At the 8B shape that takes
the host 11 ms and more, the device waits for most of it, and where answers are drafted well they end so soon that
prefills are frequent. In one graph a prefill is launched at once.
"""

from __future__ import annotations

from sglang.srt.model_executor.cuda_graph_config import Backend, CudaGraphConfig
from sglang.srt.runtime_context import attention_backends, get_exec

from dlm_serve.sglang.protocols import ServerArgsLike

_IN_ONE_GRAPH = ("fa3",)
"""Attention backends with which prefills in one graph were measured. SGLang calls such graphs experimental."""
_MOST_REQUESTS = 64
"""Requests of a prefill in one graph; more run without any. SGLang's own guess is one for each 512 tokens of the chunks
that prompts are cut into: 16 on an H200, and 4 on small cards."""


def set_prefill_graphs(server_args: ServerArgsLike) -> None:
    """Let SGLang capture a prefill of one token, and each prefill in one graph unless the user has said how.

    One token is all that is left of a prompt whose KV is cached. SGLang captures prefills of 4 tokens and more, pads
    fewer at most to twice as many, and would run one token eagerly.

    With tensor parallelism prefills stay in pieces: capturing them in one graph works there, but whether answers stay
    the same has not been measured.
    """
    prefill = get_exec().graph.cuda_graph_config.prefill
    if prefill.bs and 1 not in prefill.bs:
        prefill.bs = [1, *prefill.bs]
    may_set = prefill.backend == Backend.BREAKABLE and server_args.tp_size == 1 and not _is_chosen(server_args)
    if may_set and attention_backends()[0] in _IN_ONE_GRAPH:
        prefill.backend = Backend.FULL
        prefill.full_prefill_max_req = prefill.full_prefill_max_req or _MOST_REQUESTS


def _is_chosen(server_args: ServerArgsLike) -> bool:
    """Return whether the user has said how prefills are captured: by flag, as JSON, or in Python."""
    config = server_args.cuda_graph_config or {}
    is_whole = isinstance(config, CudaGraphConfig)
    return server_args.cuda_graph_backend_prefill is not None or is_whole or "backend" in config.get("prefill", {})
