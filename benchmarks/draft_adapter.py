"""Check the draft adapter's kernel on a GPU against its reference, then time both, and the projection it adds to.

    python benchmarks/draft_adapter.py     # prints a table, writes benchmarks/results/draft_adapter.json

The shapes are those of Nemotron-Labs-Diffusion-8B. Nothing is timed unless all outputs are right. A time is the median
over replays of a CUDA graph with one call for each of the model's layers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import report
import timing
import torch
from dlm_kernels.draft_adapter import add_low_rank, reference
from torch.nn.functional import linear

HIDDEN, RANK, LAYERS = 4096, 128, 34
NUM_TOKENS = (4, 16, 32, 64, 128, 256, 512)

Call = Callable[[], torch.Tensor]
Arguments = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def arguments(num_tokens: int, layers: int) -> list[Arguments]:
    """Return the arguments of a call per layer, with every other token on."""
    both = torch.randn(num_tokens, HIDDEN + RANK, device="cuda", dtype=torch.bfloat16)
    token_on = torch.arange(num_tokens, device="cuda") % 2 == 0
    lora_b = torch.randn(layers, HIDDEN, RANK, device="cuda", dtype=torch.bfloat16)
    return [(both[:, :HIDDEN], both[:, HIDDEN:], of_layer, token_on) for of_layer in lora_b]


def error(num_tokens: int) -> float:
    """Return the kernel's error over what is allowed: twice the reference's, plus a rounding."""
    args = arguments(num_tokens, 1)[0]
    hidden, low_rank, lora_b, token_on = args
    exact = hidden.double() + token_on[:, None] * (low_rank.double() @ lora_b.T.double())
    own, ours = (float((add(*args).double() - exact).abs().max()) for add in (reference.add_low_rank, add_low_rank))
    return ours / (2 * own + torch.finfo(torch.bfloat16).eps * float(exact.abs().max()))


def projections(num_tokens: int) -> tuple[list[Call], list[Call]]:
    """Return a projection for each layer, as it is and with the adapter."""
    x = torch.randn(num_tokens, HIDDEN, device="cuda", dtype=torch.bfloat16)
    weights = torch.randn(LAYERS, HIDDEN + RANK, HIDDEN, device="cuda", dtype=torch.bfloat16)
    calls = arguments(num_tokens, LAYERS)

    def with_adapter(stacked: torch.Tensor, args: Arguments) -> torch.Tensor:
        both = linear(x, stacked)
        return add_low_rank(both[:, :HIDDEN], both[:, HIDDEN:], *args[2:])

    plain: list[Call] = [partial(linear, x, stacked[:HIDDEN]) for stacked in weights]
    return plain, [partial(with_adapter, stacked, args) for stacked, args in zip(weights, calls, strict=True)]


def main() -> None:
    """Print a line for each number of tokens, and write the figures."""
    errors = {num_tokens: error(num_tokens) for num_tokens in NUM_TOKENS}
    if max(errors.values()) > 1:
        raise SystemExit(f"outputs are wrong: {errors}")
    figures = {}
    for num_tokens in NUM_TOKENS:
        calls = arguments(num_tokens, LAYERS)
        plain, with_adapter = projections(num_tokens)
        times = {
            "kernel_us": timing.median_us([partial(add_low_rank, *args) for args in calls]),
            "pytorch_us": timing.median_us([partial(reference.add_low_rank, *args) for args in calls]),
            "projection_us": timing.median_us(plain),
            "with_adapter_us": timing.median_us(with_adapter),
        }
        figures[str(num_tokens)] = times
        print(f"{num_tokens:4} tokens: " + ", ".join(f"{name} {time:.2f}" for name, time in times.items()))
    report.write("draft_adapter", {"tokens": figures}, "torch", "triton")


if __name__ == "__main__":
    main()
