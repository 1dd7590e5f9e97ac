"""Llama-4's scaling of queries by their position, computed once per forward."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.models.ministral3 import _get_llama_4_attn_scale


class QueryScale:
    """The scale that SGLang computes anew in each layer, by nine small kernels: the layers share the first one's."""

    def __init__(self) -> None:
        self._scale = torch.ones(1, 1)  # [T, 1], of the forward that runs and its precision

    def attach(self, attention: Any, *, is_first: bool) -> None:
        """Take over from a layer's `Ministral3Attention`; the first layer of the model computes."""
        beta, period = attention.llama_4_scaling_beta, attention.max_position_embeddings
        if beta is None:
            return
        attention.llama_4_scaling_beta = None

        def compute(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            scale = _get_llama_4_attn_scale(kwargs["positions"], beta, period)
            self._scale = scale.to(kwargs["hidden_states"].dtype)

        def scale(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            queries, *rest = args
            return (queries * self._scale, *rest)

        if is_first:
            attention.register_forward_pre_hook(compute, with_kwargs=True)
        attention.attn.register_forward_pre_hook(scale)
