"""The kernels of block attention against their reference: in Triton's interpreter, or on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from dlm_kernels.block_attention import Visible, launch, reference

from tests.conftest import ON_GPU


@dataclass(frozen=True)
class Shape:
    """One batch: a row for each prefix length."""

    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    prefix_lens: tuple[int, ...]
    splits: int

    def __str__(self) -> str:
        heads = f"H{self.num_heads}/{self.num_kv_heads}-D{self.head_dim}"
        return f"W{self.width}-{heads}-C{'_'.join(map(str, self.prefix_lens))}-S{self.splits}"


# The interpreter computes with NumPy, which has no bfloat16.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if ON_GPU else [])]

SHAPES = [
    Shape(1, 8, 1, 32, (3, 200), 2),
    Shape(4, 4, 2, 96, (70, 3, 0, 9), 4),
    Shape(5, 4, 2, 16, (7, 0), 1),
    Shape(8, 3, 3, 64, (65, 9, 128), 2),
    Shape(32, 4, 1, 64, (130, 1), 4),
    Shape(64, 4, 1, 128, (70,), 8),
    Shape(8, 10, 2, 128, (130, 7), 2),
    Shape(8, 16, 2, 128, (65, 200), 2),
    Shape(96, 2, 1, 64, (70, 0), 2),
    Shape(128, 1, 1, 64, (130,), 4),
    Shape(192, 1, 1, 128, (65,), 1),
]


CASES = [(shape, dtype) for dtype in DTYPES for shape in (SHAPES if ON_GPU or dtype is torch.float32 else SHAPES[::3])]
"""On a GPU all; interpreted, types differ in how they are rounded alone."""


def visible_of(batch: int, width: int, device: torch.device) -> Visible:
    """Rows of branches, causal, causal up to the middle, and bidirectional, each with more padding than the last."""
    rows, column = torch.arange(batch, device=device)[:, None], torch.arange(width, device=device)
    new_len = (width - rows).clamp(min=1)
    causal_len = torch.tensor([width, width, width // 2, 0], device=device)[rows % 4]
    visible = Visible.of(causal_len.squeeze(1), new_len.squeeze(1), width)
    chain, size = width // 3 + 1, 5
    group = (column - chain) // size
    lo = chain + group * size
    branches = (group + 1, lo, (lo + size).clamp(max=width))
    branches_off = (rows % 4 == 0) & (column >= chain)
    return Visible(*(torch.where(branches_off, *parts).int() for parts in zip(branches, visible, strict=True)))


def arguments(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int = 0) -> dict[str, Any]:
    """Random keys in shuffled slots; rows of all kinds and of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    batch, width = len(shape.prefix_lens), shape.width

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).to(dtype)

    table = torch.stack([torch.randperm(500, generator=generator)[:260] for _ in range(batch + 1)])
    args = {
        "q": random(batch, width, shape.num_heads, shape.head_dim),
        "k": random(batch, width, shape.num_kv_heads, shape.head_dim),
        "v": random(batch, width, shape.num_kv_heads, shape.head_dim),
        "k_cache": random(500, shape.num_kv_heads, shape.head_dim),
        "v_cache": random(500, shape.num_kv_heads, shape.head_dim),
        "slot_table": table.int(),
        "slot_rows": torch.randperm(batch + 1, generator=generator)[:batch],
        "prefix_lens": torch.tensor(shape.prefix_lens),
        "scale": shape.head_dim**-0.5,
    }
    on_device = {name: value.to(device) if torch.is_tensor(value) else value for name, value in args.items()}
    return {**on_device, "visible": visible_of(batch, width, device)}


def oracle_of(args: dict[str, Any]) -> torch.Tensor:
    """The reference in float64."""
    wide: dict[str, Any] = {
        name: t.double() if torch.is_tensor(t) and t.is_floating_point() else t for name, t in args.items()
    }
    return reference.block_attention(**wide)


def error_of(out: torch.Tensor, args: dict[str, Any]) -> torch.Tensor:
    """The largest distance of `out` from the oracle."""
    return (out.double() - oracle_of(args)).abs().max()


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_equals_reference(
    shape: Shape, dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most twice as far from the float64 result as the reference in the same precision, plus a rounding.

    The reference is as far as in the worst of eight draws: one draw of a small shape has too few outputs to tell.
    """
    choose = launch.choose
    monkeypatch.setattr(launch, "choose", lambda *shapes: replace(choose(*shapes), splits=shape.splits))
    args = arguments(shape, dtype, device)
    draws = [arguments(shape, dtype, device, seed) for seed in range(8)]
    allowed = max(error_of(reference.block_attention(**drawn), drawn) for drawn in draws)
    rounding = torch.finfo(dtype).eps * oracle_of(args).abs().max()
    assert error_of(launch.block_attention(**args), args) <= 2 * allowed + rounding


def test_rows_of_one_batch_are_as_alone(device: torch.device) -> None:
    args = arguments(SHAPES[3], torch.float32, device)
    together = launch.block_attention(**args)
    for i in range(3):
        one = {name: args[name][i : i + 1] for name in ("q", "k", "v", "slot_rows", "prefix_lens")}
        visible = Visible(*(tensor[i : i + 1] for tensor in args["visible"]))
        assert torch.equal(launch.block_attention(**{**args, **one, "visible": visible})[0], together[i])


def test_queries_that_see_nothing_are_finite(device: torch.device) -> None:
    args = arguments(Shape(8, 4, 2, 32, (0, 0), 2), torch.float32, device)
    nothing = torch.zeros(2, 8, dtype=torch.int32, device=device)
    assert launch.block_attention(**{**args, "visible": Visible(nothing, nothing, nothing)}).isfinite().all()


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2]], ids=str)
def test_tokens_may_lie_apart(shape: Shape, device: torch.device) -> None:
    """As they do when queries, keys and values are slices of one projection; also in rows of one token."""
    args = arguments(shape, torch.float32, device)
    batch, width, num_heads, head_dim = args["q"].shape
    num_kv_heads = args["k"].shape[2]
    joint = torch.cat([args[name].flatten(2) for name in ("q", "k", "v")], dim=2).view(batch * width, -1)
    sizes = [num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim]
    slices = (part.view(batch, width, -1, head_dim) for part in torch.split(joint, sizes, dim=1))
    apart = {**args, **dict(zip(("q", "k", "v"), slices, strict=True))}
    assert not apart["k"].is_contiguous()
    assert torch.equal(launch.block_attention(**apart), launch.block_attention(**args))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"q": torch.zeros(1, 2, 3, 16)}, "multiple of the 2 KV heads"),
        ({"q": torch.zeros(1, 2, 4, 8), "k": torch.zeros(1, 2, 2, 8)}, "head_dim = 8"),
        ({"q": torch.zeros(1, 4, 2, 16).transpose(1, 2)}, "q: heads and rows of tokens must be contiguous"),
        ({"k_cache": torch.zeros(9, 2, 32)[:, :, ::2]}, "k_cache"),
        ({"slot_table": torch.zeros(4, 9).int().T}, "slot_table"),
        ({"visible": Visible(*torch.zeros(3, 1, 1).int().expand(3, 1, 2))}, "visible.prefix"),
    ],
    ids=["groups", "head_dim", "layout", "cache", "table", "visible"],
)
def test_what_the_kernels_do_not_read_is_refused(change: dict[str, Any], says: str) -> None:
    args = arguments(Shape(2, 4, 2, 16, (5,), 1), torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match=says):
        launch.block_attention(**{**args, **change})


@pytest.mark.parametrize(
    ("kilobytes", "head_dim", "tile"), [(227, 256, 128), (99, 64, 128), (99, 128, 128), (99, 256, 32), (64, 128, 64)]
)
def test_a_launch_fits_the_shared_memory_of_the_card(
    kilobytes: int, head_dim: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """99 KB are those of an RTX 4090 or an L4, 227 those of an H100."""
    monkeypatch.setattr(launch, "_shared_memory", lambda _: kilobytes * 1024)
    assert launch.choose(256, 32, 4, head_dim, torch.bfloat16, torch.device("cpu")).tile == tile
