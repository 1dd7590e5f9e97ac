"""The LoRA that is on in the draft of self-speculation and off everywhere else, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from dlm_kernels.draft_adapter import add_low_rank
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
from sglang.srt.runtime_context import get_parallel
from torch.nn.functional import linear

from dlm_serve.errors import CheckpointError
from dlm_serve.models.adapter_file import LowRank, of_layer, read_adapter


class DraftAdapter:
    """Low-rank additions to the output projections, counted only for the tokens that draft."""

    def __init__(self, weights: dict[int, LowRank]) -> None:
        self._weights = weights
        self.token_on: torch.Tensor | None = None
        """For which tokens of a forward it counts [T] bool; None where it counts for none."""

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> DraftAdapter:
        """Return the adapter in `folder`: A [r, in] cut to this rank's share of the input, B [out, r] scaled."""
        parallel = get_parallel()
        return cls(read_adapter(folder, device, dtype, parallel.tp_rank, parallel.tp_size))

    def attach(self, layer_id: int, o_proj: torch.nn.Module) -> None:
        """Add this adapter's product to what `o_proj` puts out, before ranks are summed.

        Where weights are not quantised, A moves below those of `o_proj`: a product less in every layer.
        """
        lora_a, lora_b = of_layer(self._weights, layer_id)
        if isinstance(o_proj.quant_method, UnquantizedLinearMethod) and o_proj.bias is None:
            stacked, num_outputs = torch.cat((o_proj.weight.data, lora_a)), len(lora_b)
            o_proj.weight.data, lora_a = stacked[:num_outputs], stacked[num_outputs:]
            self._weights[layer_id] = lora_a, lora_b
            o_proj.quant_method = _StackedLinear(self, stacked, lora_b)
            return

        def add(module: torch.nn.Module, args: tuple[Any, ...], output: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if self.token_on is None:
                return None
            hidden, *rest = output
            return (add_low_rank(hidden, args[0] @ lora_a.T, lora_b, self.token_on), *rest)

        o_proj.register_forward_hook(add)

    def check_update(self, other: DraftAdapter) -> None:
        """Raise CheckpointError unless the weights of `other` have the shapes of this one's."""
        ours, theirs = ({i: (a.shape, b.shape) for i, (a, b) in x._weights.items()} for x in (self, other))
        if ours != theirs:
            limit = "the adapter has other layers or another rank than the server's"
            raise CheckpointError("draft adapter", "<update>", limit, "start a server with it")

    def update(self, other: DraftAdapter | None) -> None:
        """Take the weights of `other` in place, where captured graphs read them; None is one that adds nothing."""
        for layer_id, (lora_a, lora_b) in self._weights.items():
            if other is None:
                lora_b.zero_()
            else:
                lora_a.copy_(other._weights[layer_id][0])
                lora_b.copy_(other._weights[layer_id][1])

    @contextmanager
    def switched(self, token_on: torch.Tensor) -> Iterator[None]:
        """Let the adapter count, within this context, for the tokens of a forward where `token_on` [T] bool holds."""
        self.token_on = token_on
        try:
            yield
        finally:
            self.token_on = None


class _StackedLinear(UnquantizedLinearMethod):  # type: ignore[misc]  # the base is untyped
    """A projection whose weights end with the adapter's A: one product gives what is projected and its low rank."""

    def __init__(self, adapter: DraftAdapter, stacked: torch.Tensor, lora_b: torch.Tensor) -> None:
        self._adapter = adapter
        self._stacked = stacked
        self._lora_b = lora_b

    def apply(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return `x` [T, in] projected, with the adapter where it counts."""
        token_on = self._adapter.token_on
        if token_on is None:
            projected: torch.Tensor = super().apply(layer, x, bias)
            return projected
        both, num_outputs = linear(x, self._stacked), len(self._lora_b)
        return add_low_rank(both[:, :num_outputs], both[:, num_outputs:], self._lora_b, token_on)
