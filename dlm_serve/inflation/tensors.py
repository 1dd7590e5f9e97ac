"""Compute the large model's weights, one shard at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from dlm_serve.inflation.adapter import Adapter, Tensors, name_parts
from dlm_serve.inflation.shapes import Axis, Fit, Shape
from dlm_serve.inflation.source import EMBEDDING, HEAD, NORM, Source

_STD = 0.02
"""Standard deviation of the random weights: the models' `initializer_range`."""

_POOL = 2**20 - 3
"""How many random numbers are drawn, to be repeated. A prime, so that no two rows of a matrix begin alike."""

Filler = Callable[[int, int], torch.Tensor]
"""Makes a matrix [rows, columns] for what the small model lacks."""


class Inflation:
    """A small model in a large shape. Raises CheckpointError or ConfigError if it does not fit."""

    def __init__(self, source: Source, shape: Shape) -> None:
        self._source, self._shape, self._fit = source, shape, Fit.of(source.checkpoint, shape)
        self._dtype = source.tensors[EMBEDDING].dtype
        pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(0)) * _STD
        self._pool = pool.to(self._dtype).repeat(2)  # twice, so that a slice can start anywhere
        self._start = 0

    @property
    def config(self) -> dict[str, object]:
        """Return the large model's `config.json`: the small one's token ids and block size, the shape's sizes."""
        eps = self._source.checkpoint.rms_norm_eps * self._shrinkage**2
        return {**self._source.config, **self._shape.model_dump(), "rms_norm_eps": eps}

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all weights."""
        large = self._shape
        heads = (2 * large.num_attention_heads + 2 * large.num_key_value_heads) * large.head_dim
        layer = large.hidden_size * (heads + 3 * large.intermediate_size + 2)
        numbers = large.num_hidden_layers * layer + (2 * large.vocab_size + 1) * large.hidden_size
        return numbers * self._dtype.itemsize

    @property
    def num_shards(self) -> int:
        """Return how many shards `shards` yields."""
        return self._shape.num_hidden_layers + 2

    def shards(self) -> Iterator[Tensors]:
        """Yield all tensors by name: the embedding, each layer, the head."""
        yield {EMBEDDING: self._embedding()}
        for index in range(self._shape.num_hidden_layers):
            if index <= self._source.checkpoint.num_hidden_layers:  # those after are like the first one it lacks
                layer = dict(self._layer(index))
            yield {f"encoder.layers.{index}.{name}.weight": tensor for name, tensor in layer.items()}
        yield {NORM: self._norm(self._source.tensors[NORM]), HEAD: self._head()}

    def adapter(self, small: Adapter) -> Adapter:
        """Return a draft adapter in the large shape; its product is zero in layers that the small model lacks."""
        found: Tensors = {}
        for name, tensor in small.tensors.items():
            before, index, after, matrix = name_parts(name)
            rank = Axis.first(*2 * [min(tensor.shape)])
            rows, columns = (rank, self._fit.query) if matrix == "A" else (self._fit.hidden, rank)
            found[name] = _place(tensor, rows, columns, partial(torch.zeros, dtype=tensor.dtype))
            if index == 0:
                for extra in range(self._source.checkpoint.num_hidden_layers, self._shape.num_hidden_layers):
                    found[f"{before}{extra}{after}"] = torch.zeros_like(found[name])
        return replace(small, tensors=found)

    @property
    def _shrinkage(self) -> float:
        """Return the factor by which zeros after the small model's residual stream lower its root mean square."""
        return math.sqrt(self._source.checkpoint.hidden_size / self._shape.hidden_size)

    def _layer(self, index: int) -> Iterator[tuple[str, torch.Tensor]]:
        fit, given = self._fit, self._source.layer(index)
        for name, rows, columns, filler in (
            ("self_attn.q_proj", fit.query, fit.hidden, self._noise),
            ("self_attn.k_proj", fit.key_value, fit.hidden, self._noise),
            ("self_attn.v_proj", fit.key_value, fit.hidden, self._noise),
            ("self_attn.o_proj", fit.hidden, fit.query, self._zeros),
            ("mlp.gate_proj", fit.units, fit.hidden, self._noise),
            ("mlp.up_proj", fit.units, fit.hidden, self._noise),
            ("mlp.down_proj", fit.hidden, fit.units, self._zeros),
        ):
            yield name, _place(given.get(name), rows, columns, filler)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield name, self._norm(given.get(name))

    def _embedding(self) -> torch.Tensor:
        """Return [V, H]: rows of the small model end in zeros, as do those that it lacks, with the same constant."""
        given = self._source.tensors[EMBEDDING]
        rows = self._zeros(self._shape.vocab_size, self._shape.hidden_size)
        rows[:, : given.shape[1]] = self._noise(len(rows), given.shape[1])
        rows[:, self._source.channel] = self._source.constant
        rows[: len(given), : given.shape[1]] = given
        return rows

    def _head(self) -> torch.Tensor:
        """Return [V, H]; columns after the small model's are multiplied by zeros."""
        given = self._source.tensors[HEAD]
        num_given, width = given.shape
        rows = self._noise(self._shape.vocab_size, self._shape.hidden_size)
        rows[:num_given, :width] = given
        rows[num_given:, :width] = 0
        rows[num_given:, self._source.channel] = self._source.losing_weight(len(rows))
        return rows

    def _norm(self, given: torch.Tensor | None) -> torch.Tensor:
        """Return a norm's weight [H] from the small model's [h]."""
        weight = torch.ones(self._shape.hidden_size, dtype=self._dtype)
        if given is not None:
            weight[: len(given)] = given.double() * self._shrinkage
        return weight

    def _noise(self, rows: int, columns: int) -> torch.Tensor:
        """Return a matrix of random numbers: the pool over and over, from where the last matrix ended."""
        matrix = torch.empty(rows, columns, dtype=self._dtype)
        for part in torch.split(matrix.view(-1), _POOL):
            part.copy_(self._pool[self._start : self._start + len(part)])
        self._start = (self._start + matrix.numel()) % _POOL
        return matrix

    def _zeros(self, rows: int, columns: int) -> torch.Tensor:
        return torch.zeros(rows, columns, dtype=self._dtype)


def _place(given: torch.Tensor | None, rows: Axis, columns: Axis, filler: Filler) -> torch.Tensor:
    """Return a matrix [rows, columns] of the large model: `given` in its place, the rest from `filler`."""
    matrix = filler(rows.size, columns.size)
    if given is not None:
        matrix[rows.targets[:, None], columns.targets] = given[rows.sources[:, None], columns.sources]
    return matrix
