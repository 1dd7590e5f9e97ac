"""Measure how long the host fills the masks of drafts, by how many rows of the vocabulary have a token. Needs no GPU.

    python benchmarks/grammar_masks.py [--repeats 100]    # writes benchmarks/results/grammar_masks.json

The vocabulary is that of Nemotron-Labs-Diffusion-8B. One tokenizer is nano's own, which lacks most of it; the other is
what `dlm-serve inflate` makes of it, which has a token for each row, as a release's has. A time is the median over
repeats of all masks of four drafts, which follow their grammar to the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import torch
from logits_speed import SCHEMA, WITH_PATTERN
from sglang.srt.constrained.xgrammar_backend import XGrammarGrammarBackend
from transformers import PreTrainedTokenizerFast

from dlm_serve.bundled import FOLDER
from dlm_serve.inflation.tokenizer import fill_tokenizer
from dlm_serve.models.shape import RELEASES
from dlm_serve.sglang.engine.grammar_masks import fill_along
from dlm_serve.training.tasks import TASKS

VOCAB_SIZE = RELEASES["8b"]["vocab_size"]
DRAFTS, WIDTH = 4, 32

Kind = Callable[[XGrammarGrammarBackend, str], Any]
"""Compiles a rule to a grammar."""


def answers(task: str) -> list[str]:
    """Return an answer to a held-out question of a task for each draft."""
    return [example.answer for example in TASKS[task].examples("heldout", DRAFTS, seed=11)]


def filled(folder: Path) -> PreTrainedTokenizerFast:
    """Return nano's tokenizer with a token for each row; its files are written to `folder`."""
    for file in FOLDER.glob("*token*.json"):
        shutil.copy(file, folder)
    fill_tokenizer(folder / "tokenizer.json", VOCAB_SIZE)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def median_ms(tokenizer: PreTrainedTokenizerFast, kind: Kind, rule: str, texts: list[str], repeats: int) -> float:
    """Return the milliseconds in which the masks behind the first tokens of `texts` are filled one after another."""
    backend = XGrammarGrammarBackend(tokenizer, VOCAB_SIZE, [tokenizer.eos_token_id])
    compiled = kind(backend, rule)
    drafts = [tokenizer.encode(text)[:WIDTH] for text in texts]
    grammars = [compiled.copy() for _ in drafts]
    for grammar, tokens in zip(grammars, drafts, strict=True):
        grammar.accept_token(tokens[0])
    masks = backend.allocate_vocab_mask(VOCAB_SIZE, DRAFTS * WIDTH, "cpu")

    def fill() -> float:
        start = time.perf_counter()
        for grammar, tokens, rows in zip(grammars, drafts, masks.split(WIDTH), strict=True):
            fill_along(grammar, tokens, rows)
        return 1000 * (time.perf_counter() - start)

    fill()
    if not torch.all((masks != -1).any(dim=1)):
        raise SystemExit(f"a draft does not follow {rule}")
    return statistics.median(fill() for _ in range(repeats))


def main() -> None:
    """Print a line for each grammar, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=100, metavar="N", help="fillings, of which the median counts")
    repeats = parser.parse_args().repeats
    indented = [json.dumps(json.loads(answer), indent=2) for answer in answers("json")]
    grammars: dict[str, tuple[Kind, str, list[str]]] = {
        "schema": (XGrammarGrammarBackend.dispatch_json, json.dumps(SCHEMA), indented),
        "pattern": (XGrammarGrammarBackend.dispatch_regex, WITH_PATTERN["sampling_params"]["regex"], answers("units")),
    }
    with tempfile.TemporaryDirectory() as folder:
        tokenizers = {"nano": PreTrainedTokenizerFast.from_pretrained(FOLDER), "filled": filled(Path(folder))}
    ms: dict[str, dict[str, float]] = {}
    for name, grammar in grammars.items():
        ms[name] = {which: round(median_ms(each, *grammar, repeats), 3) for which, each in tokenizers.items()}
        print(f"{name}: {ms[name]} ms for the masks of {DRAFTS} drafts of {WIDTH} tokens")
    report.write("grammar_masks", {"drafts": DRAFTS, "width": WIDTH, "vocab_size": VOCAB_SIZE, "ms": ms}, "xgrammar")


if __name__ == "__main__":
    main()
