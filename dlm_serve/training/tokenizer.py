"""Train and load the bundled model's tokenizer: byte-level BPE, each digit a token of its own, ChatML."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from dlm_serve.errors import ConfigError

UNKNOWN, BOS, MASK, TURN, TURN_END, THINK, THINK_END = SPECIAL_TOKENS = (
    "<unk>",
    "<s>",
    "<|mask|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
)
"""Special tokens, in the order of their ids."""

BOS_ID, MASK_ID, EOS_ID, THINK_END_ID = (SPECIAL_TOKENS.index(token) for token in (BOS, MASK, TURN_END, THINK_END))

# As the release renders it: an empty system turn where none is given, no thinking unless asked for.
CHAT_TEMPLATE = (
    "{%- set enable_thinking = enable_thinking | default(false) -%}"
    "{%- if messages[0]['role'] == 'system' -%}"
    "{{ '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else -%}{{ '<|im_start|>system\n<|im_end|>\n' }}{%- endif -%}"
    "{%- for message in messages -%}{%- if message['role'] != 'system' -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking -%}{{ '<think>\n' }}{%- else -%}{{ '<think></think>' }}{%- endif -%}{%- endif -%}"
)


def render_prompt(messages: Sequence[str]) -> str:
    """Return `messages`, the user's and the assistant's in turn, in the chat template, up to the next answer."""
    turns = [f"<|im_start|>{('user', 'assistant')[i % 2]}\n{text}<|im_end|>\n" for i, text in enumerate(messages)]
    return f"<|im_start|>system\n<|im_end|>\n{''.join(turns)}<|im_start|>assistant\n<think></think>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a tokenizer of `vocab_size` tokens that reads any bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer(  # type: ignore[no-untyped-call]
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write the files that `AutoTokenizer` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": BOS, "eos_token": TURN_END, "unk_token": UNKNOWN, "mask_token": MASK}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        **names,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=1) + "\n")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer in `folder`. Raises ConfigError if it is not one of ours."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConfigError("tokenizer", str(path), "no such file", "build the corpus first: dlm-serve corpus")
    tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    if [tokenizer.id_to_token(token) for token in range(len(SPECIAL_TOKENS))] != list(SPECIAL_TOKENS):
        raise ConfigError(
            "tokenizer", str(path), f"must start with {SPECIAL_TOKENS}", "use the one `dlm-serve corpus` built"
        )
    return tokenizer
