"""SGLang's Ministral-3 with the scale of queries computed once per forward.

Ministral-3 as it is: YaRN whose cos/sin factor is 1.0 for `mscale == mscale_all_dim`, Llama-4 query scaling,
`head_dim` of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sglang.srt.models.ministral3 import Ministral3ForCausalLM

from dlm_serve.models.query_scale import QueryScale


class SharedScaleMinistral3(Ministral3ForCausalLM):  # type: ignore[misc]  # the base is untyped
    """The backbone of Nemotron-Labs-Diffusion."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        scale = QueryScale()
        for layer_id in range(self.model.start_layer, self.model.end_layer):
            attention = self.model.layers[layer_id].self_attn
            scale.attach(attention, is_first=layer_id == self.model.start_layer)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load by the newer of SGLang's two ways: the older one renames, and so loses, scales of block-wise FP8."""
        loaded: set[str] = self._load_weights_v2(weights)
        return loaded
