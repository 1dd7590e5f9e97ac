"""Present ourselves to SGLang: a speculative algorithm without a draft model."""

from __future__ import annotations

from typing import Any

from sglang.srt.speculative.spec_registry import CustomSpecAlgo

from dlm_serve.sglang.protocols import ServerArgsLike
from dlm_serve.sglang.serving import load_serving

NAME = "DLM"


class DlmAlgorithm(CustomSpecAlgo):  # type: ignore[misc]  # the base is untyped
    """The parts of SGLang's `SpeculativeAlgorithm` interface that its registry class leaves out."""

    def has_draft_kv(self) -> bool:
        """Return False: drafts write no KV of their own."""
        return False

    def carries_draft_hidden_states(self) -> bool:
        """Return False: nothing but the pending token travels between steps."""
        return False

    def need_topk(self) -> bool:
        """Return False: a draft is a chain, not a tree."""
        return False

    def supports_grammar_overlap(self) -> bool:
        """Return True: a step brings grammars behind the one before it while its own forward runs."""
        return True

    def get_platform_worker_cls(self) -> None:
        """Return None: one worker class serves every platform."""

    def create_future_map(self, device: str, req_to_token_pool: Any, *args: Any, **kwargs: Any) -> Any:
        """Return SGLang's own relay between overlapped steps."""
        from sglang.srt.managers.overlap_utils import FutureMap

        return FutureMap(device, self, req_to_token_pool, *args, **kwargs)

    def handle_server_args(self, server_args: ServerArgsLike) -> None:
        """Reserve KV for the widest block."""
        server_args.speculative_num_draft_tokens = load_serving(server_args).config.routing.max_width
        server_args.speculative_num_steps = 1
        server_args.speculative_eagle_topk = 1
        server_args.enable_mixed_chunk = False
