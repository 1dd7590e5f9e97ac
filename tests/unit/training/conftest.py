"""A corpus of synthetic tasks, small enough to train on in a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlm_serve.training.config import ModelShape
from dlm_serve.training.corpus import Corpus, encode
from dlm_serve.training.model import DiffusionModel
from dlm_serve.training.tasks import TASKS, Split
from dlm_serve.training.tokenizer import save_tokenizer, train_tokenizer

TASK_NAMES = ("json", "reversing")


def conversations(split: Split, count: int) -> list[tuple[str, ...]]:
    """`count` examples of each task, as conversations."""
    examples = [example for name in TASK_NAMES for example in TASKS[name].examples(split, count, seed=0)]
    return [(example.prompt, example.answer) for example in examples]


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `dlm-serve corpus` leaves it."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [text for conversation in conversations("train", 300) for text in conversation]
    tokenizer = train_tokenizer([*texts, "system\nuser\nassistant\n"], vocab_size=400)
    save_tokenizer(tokenizer, folder / "tokenizer", max_length=256)
    encode(tokenizer, conversations("train", 150)).save(folder / "train.npz")
    encode(tokenizer, conversations("heldout", 20)).save(folder / "heldout.npz")
    return folder


@pytest.fixture(scope="session")
def corpus(corpus_folder: Path) -> Corpus:
    """Its training part."""
    return Corpus.load(corpus_folder / "train.npz")


@pytest.fixture
def model() -> DiffusionModel:
    """Random weights, two layers, grouped-query attention."""
    shape = ModelShape(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
    )
    model = DiffusionModel(shape.to_config(vocab_size=400, block_size=32))
    model.initialise(seed=0)
    return model
