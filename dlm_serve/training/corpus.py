"""Build the corpus: conversations from open sources and synthetic tasks as token ids, each ending in an answer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from dlm_serve.errors import ConfigError
from dlm_serve.training.sources import ABOUT, SOURCES, Conversation
from dlm_serve.training.tasks import TASKS, Split
from dlm_serve.training.tokenizer import (
    THINK_END_ID,
    TURN_END,
    load_tokenizer,
    render_prompt,
    save_tokenizer,
    train_tokenizer,
)

_CHUNK = 2000
"""Conversations that a process encodes at a time."""
_TOKENIZER_SAMPLE = 3000
"""Examples of each task that the tokenizer is trained on, besides all texts."""


@dataclass(frozen=True)
class Corpus:
    """D documents in a row; in each, everything from `answer_starts` on is the answer, ending in EOS."""

    tokens: NDArray[np.uint16]  # [total]
    lens: NDArray[np.int32]  # [D]
    answer_starts: NDArray[np.int32]  # [D], inside the document

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """Return the corpus in an .npz file. Raises ConfigError."""
        try:
            with np.load(path) as arrays:
                return cls(arrays["tokens"], arrays["lens"], arrays["answer_starts"])
        except (OSError, KeyError, ValueError) as error:
            raise ConfigError("corpus", str(path), f"cannot be read ({error})", "build it: dlm-serve corpus") from error

    def save(self, path: Path) -> None:
        """Write the corpus to an .npz file."""
        np.savez(path, tokens=self.tokens, lens=self.lens, answer_starts=self.answer_starts)

    @classmethod
    def join(cls, parts: Sequence[Corpus]) -> Corpus:
        """Return all documents of `parts`, in order."""
        return cls(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.lens for part in parts]),
            np.concatenate([part.answer_starts for part in parts]),
        )


def encode(tokenizer: Tokenizer, conversations: Sequence[Conversation]) -> Corpus:
    """Return the tokens of `conversations`, each up to the end of its last message."""
    texts = [f"{render_prompt(messages[:-1])}{messages[-1]}{TURN_END}" for messages in conversations]
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    return Corpus(
        np.fromiter((token for document in ids for token in document), np.uint16),
        np.array([len(document) for document in ids], np.int32),
        np.array([document.index(THINK_END_ID) + 1 for document in ids], np.int32),
    )


def build_corpus(out: Path, cache: Path, examples_per_task: int, vocab_size: int, max_length: int, seed: int) -> None:
    """Write `out/tokenizer/`, `out/train.npz` and `out/heldout.npz`.

    Packages are fetched into `cache` unless they are there. An existing tokenizer is kept.
    Raises ConfigError.
    """
    texts = _texts(cache)
    folder = out / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        save_tokenizer(train_tokenizer(_tokenizer_sample(texts, seed), vocab_size), folder, max_length)
    load_tokenizer(folder)
    chunks = [*_task_chunks("train", examples_per_task, seed), *_chunked(texts)]
    encode_chunk = partial(_encode_chunk, folder)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        parts = list(tqdm(pool.map(encode_chunk, chunks), total=len(chunks), desc="corpus", mininterval=1))
    Corpus.join(parts).save(out / "train.npz")
    heldout = [encode_chunk(chunk) for chunk in _task_chunks("heldout", _HELDOUT_PER_TASK, seed)]
    Corpus.join(heldout).save(out / "heldout.npz")


_HELDOUT_PER_TASK = 200

_Chunk = list[Conversation] | tuple[str, Split, int, int]
"""Conversations, or the name, split, count and seed that a task draws them with."""


def _texts(cache: Path) -> list[Conversation]:
    texts = list(ABOUT) * _ABOUT_REPEATS
    for source in SOURCES:
        texts += source.conversations(cache) * source.repeats
    return texts


_ABOUT_REPEATS = 100


def _chunked(texts: list[Conversation]) -> Iterator[_Chunk]:
    yield from (texts[start : start + _CHUNK] for start in range(0, len(texts), _CHUNK))


def _task_chunks(split: Split, count: int, seed: int) -> Iterator[_Chunk]:
    for name in TASKS:
        for part, start in enumerate(range(0, count, _CHUNK)):
            yield name, split, min(_CHUNK, count - start), seed * 1_000_000 + part


def _encode_chunk(tokenizer_folder: Path, chunk: _Chunk) -> Corpus:
    if isinstance(chunk, tuple):
        name, split, count, seed = chunk
        chunk = [(example.prompt, example.answer) for example in TASKS[name].examples(split, count, seed)]
    return encode(load_tokenizer(tokenizer_folder), chunk)


def _tokenizer_sample(texts: list[Conversation], seed: int) -> Iterator[str]:
    for conversation in texts:
        yield from ("system\nuser\nassistant\n", *conversation[-2:])
    for task in TASKS.values():
        for example in task.examples("train", _TOKENIZER_SAMPLE, seed):
            yield from (example.prompt, example.answer)
