"""Fit the sizes of a small model into those of a large one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from dlm_serve.errors import CheckpointError, ConfigError
from dlm_serve.models.checkpoint import Checkpoint
from dlm_serve.models.shape import RELEASES, ModelShape


class Shape(ModelShape):
    """The sizes of the model to write."""

    @classmethod
    def like(cls, name: str) -> Shape:
        """Return the shape called `name`, or that of the `config.json` at this path. Raises ConfigError."""
        try:
            return cls.model_validate(RELEASES.get(name) or json.loads(Path(name).read_text()))
        except (OSError, ValidationError, ValueError) as error:
            problem = str(error).splitlines()[0]
            raise ConfigError(
                "--like", name, f"is no shape ({problem})", f"use {', '.join(RELEASES)} or the path of a config.json"
            ) from None


@dataclass(frozen=True)
class Axis:
    """Where the entries of a small model's axis are in the large model's."""

    size: int
    """Size of the large axis."""
    targets: torch.Tensor
    """Positions in the large axis, int64 [n]."""
    sources: torch.Tensor
    """The positions in the small axis that they hold, int64 [n]."""

    @classmethod
    def first(cls, small: int, large: int) -> Axis:
        """Place the small axis at the start of the large one."""
        return cls(large, torch.arange(small), torch.arange(small))

    @classmethod
    def heads(cls, pairs: list[tuple[int, int]], num_heads: int, head_dim: int) -> Axis:
        """Place heads of `head_dim` entries each at the (large, small) positions of `pairs`."""
        within = torch.arange(head_dim)
        targets, sources = (torch.tensor(heads)[:, None] * head_dim + within for heads in zip(*pairs, strict=True))
        return cls(num_heads * head_dim, targets.flatten(), sources.flatten())


@dataclass(frozen=True)
class Fit:
    """How the axes of a small model fit into a shape."""

    hidden: Axis
    units: Axis
    query: Axis
    key_value: Axis

    @classmethod
    def of(cls, small: Checkpoint, large: Shape) -> Fit:
        """Return the fit of `small` into `large`. Raises CheckpointError or ConfigError if there is none."""
        _check_sizes(small, large)
        _check_rotary_embedding(small, large)
        query, key_value = _head_pairs(small, large)
        return cls(
            hidden=Axis.first(small.hidden_size, large.hidden_size),
            units=Axis.first(small.intermediate_size, large.intermediate_size),
            query=Axis.heads(query, large.num_attention_heads, large.head_dim),
            key_value=Axis.heads(key_value, large.num_key_value_heads, large.head_dim),
        )


def _head_pairs(small: Checkpoint, large: Shape) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the (large, small) positions of query heads and of key-value heads: each query head keeps what it reads.

    A key-value head that is read by more query heads than the large model allows is repeated.
    """
    wanted = small.num_attention_heads // small.num_key_value_heads
    group, rest = divmod(large.num_attention_heads, large.num_key_value_heads)
    copies = -(-wanted // group) if group and not rest else 0
    if not 0 < small.num_key_value_heads * copies <= large.num_key_value_heads:
        raise ConfigError(
            "num_key_value_heads",
            large.num_key_value_heads,
            f"{small.num_key_value_heads} heads read by {wanted} query heads each do not fit into that many read by "
            f"{large.num_attention_heads} in all",
            "choose a shape with more heads",
        )
    key_value = [(head * copies + copy, head) for head in range(small.num_key_value_heads) for copy in range(copies)]
    query = [
        ((head // wanted * copies + head % wanted // group) * group + head % wanted % group, head)
        for head in range(small.num_attention_heads)
    ]
    return query, key_value


def _check_sizes(small: Checkpoint, large: Shape) -> None:
    if small.head_dim != large.head_dim:
        raise CheckpointError(
            "head_dim",
            small.head_dim,
            f"the large shape has {large.head_dim}, and attention scores depend on it",
            "use a model with that head_dim",
        )
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"):
        if getattr(large, name) < getattr(small, name):
            raise ConfigError(
                name, getattr(large, name), f"the small model has {getattr(small, name)}", "choose a larger shape"
            )


def _check_rotary_embedding(small: Checkpoint, large: Shape) -> None:
    ours, theirs = small.rope_parameters, large.rope_parameters
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if differing:
        raise CheckpointError(
            "rope_parameters",
            {name: ours.get(name) for name in differing},
            f"the large shape has { ({name: theirs.get(name) for name in differing}) }",
            "use a model with the same rotary embedding",
        )
