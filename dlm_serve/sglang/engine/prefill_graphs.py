"""Which CUDA graphs SGLang captures of prefills.

By default it captures a prefill in pieces and launches attention from Python between them, layer by layer. At the 8B
shape that takes the host 11 ms and more, the device waits for most of it, and where answers are drafted well a prefill
comes between every few steps. In one graph a prefill is launched at once.
"""

from __future__ import annotations

from sglang.srt.model_executor.cuda_graph_config import Backend
from sglang.srt.runtime_context import attention_backends, get_exec

from dlm_serve.sglang.protocols import ServerArgsLike

_IN_ONE_GRAPH = ("fa3",)
"""Attention backends that prefills in one graph, which SGLang calls experimental, were measured with."""


def set_prefill_graphs(server_args: ServerArgsLike) -> None:
    """Let SGLang capture a prefill of one token, and each prefill in one graph unless the user has said how.

    One token is all that is left of a prompt whose KV is cached. SGLang captures prefills of 4 tokens and more, pads
    fewer at most to twice as many, and would run one token eagerly.
    """
    prefill = get_exec().graph.cuda_graph_config.prefill
    if prefill.bs and 1 not in prefill.bs:
        prefill.bs = [1, *prefill.bs]
    is_chosen = server_args.cuda_graph_backend_prefill is not None or server_args.cuda_graph_config is not None
    if prefill.backend == Backend.BREAKABLE and not is_chosen and attention_backends()[0] in _IN_ONE_GRAPH:
        prefill.backend = Backend.FULL
