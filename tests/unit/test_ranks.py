"""Ranks on one machine: how they divide its cores, and models that they cannot divide."""

from __future__ import annotations

import os

import pytest

from dlm_serve.errors import ConfigError
from dlm_serve.models.shape import ModelShape
from dlm_serve.platform import ranks


@pytest.mark.parametrize(
    ("num_cores", "num_ranks", "threads", "cores"),
    [
        (8, 1, "7", None),
        (1, 1, "1", None),
        (8, 2, "3", "0,1,2,3|4,5,6,7"),
        (5, 2, "2", "0,1|2,3,4"),
        (2, 4, "1", "0|0|1|1"),
    ],
)
def test_cores_of_ranks(
    monkeypatch: pytest.MonkeyPatch, num_cores: int, num_ranks: int, threads: str, cores: str | None
) -> None:
    """A core is left to the other processes of the server, as long as there are enough."""
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(ranks, "_cores", lambda: list(range(num_cores)))
    ranks.set_threads(num_ranks)
    assert (os.environ[ranks.THREADS_VARIABLE], os.environ.get(ranks.CORES_VARIABLE)) == (threads, cores)


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {ranks.THREADS_VARIABLE: "2", ranks.CORES_VARIABLE: "4-5|6-7"}
    monkeypatch.setattr(os, "environ", dict(given))
    ranks.set_threads(2)
    assert os.environ == given


def shape(num_heads: int, num_kv_heads: int, intermediate_size: int) -> ModelShape:
    others = {"hidden_size": 64, "num_hidden_layers": 1, "head_dim": 16, "vocab_size": 300}
    return ModelShape.model_validate(
        {
            **others,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_kv_heads,
            "intermediate_size": intermediate_size,
            "max_position_embeddings": 64,
            "rope_parameters": {},
        }
    )


@pytest.mark.parametrize(
    ("num_ranks", "sizes"),
    [(1, (4, 1, 640)), (2, (4, 1, 640)), (4, (4, 1, 640)), (4, (32, 8, 14336)), (16, (32, 8, 14336))],
)
def test_models_that_ranks_divide(num_ranks: int, sizes: tuple[int, int, int]) -> None:
    """Key-value heads may be fewer than ranks, if each then has as many replicas."""
    shape(*sizes).check_ranks(num_ranks)


@pytest.mark.parametrize(
    ("num_ranks", "sizes", "undivided"),
    [
        (3, (4, 1, 639), "attention heads, 4"),
        (4, (12, 6, 640), "key-value heads, 6"),
        (4, (4, 2, 642), "intermediate size, 642"),
    ],
)
def test_models_that_they_do_not(num_ranks: int, sizes: tuple[int, int, int], undivided: str) -> None:
    with pytest.raises(ConfigError, match=f"--tp-size = {num_ranks}: does not divide the model's {undivided}"):
        shape(*sizes).check_ranks(num_ranks)
