"""Tokens that read back, the template the server uses, sources that are read rightly or complain clearly."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from dlm_serve.errors import ConfigError
from dlm_serve.training.corpus import Corpus, encode
from dlm_serve.training.sources import ABOUT, SOURCES, Source
from dlm_serve.training.tasks import TASKS
from dlm_serve.training.tokenizer import EOS_ID, MASK, MASK_ID, TURN_END, load_tokenizer, render_prompt

CHITCHAT, CHATTERBOT, WORDNET, SHAKESPEARE = SOURCES


def test_any_text_reads_back(corpus_folder: Path) -> None:
    tokenizer = load_tokenizer(corpus_folder / "tokenizer")
    texts = ["Straße 北京 🙂\t\x00", " two  spaces ", "def f(x):\n    return 12345"]
    for text in [*texts, *(example.answer for task in TASKS.values() for example in task.examples("train", 20, 0))]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_each_digit_is_a_token(corpus_folder: Path) -> None:
    assert load_tokenizer(corpus_folder / "tokenizer").encode("a1234").tokens[-4:] == ["1", "2", "3", "4"]


def test_special_tokens_are_where_the_config_says(corpus_folder: Path) -> None:
    tokenizer = load_tokenizer(corpus_folder / "tokenizer")
    assert tokenizer.encode(f"{MASK}{TURN_END}").ids == [MASK_ID, EOS_ID]


@pytest.mark.parametrize("messages", [["Hi"], ["Hi", "Hello!", "Who are you?"]])
def test_prompts_are_what_the_chat_template_makes(messages: list[str], corpus_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(corpus_folder / "tokenizer"))
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(messages)]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert rendered == render_prompt(messages)
    thinking = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert thinking == rendered.removesuffix("</think>") + "\n"


def test_a_document_is_the_prompt_then_the_answer_then_eos(corpus_folder: Path) -> None:
    tokenizer = load_tokenizer(corpus_folder / "tokenizer")
    corpus = encode(tokenizer, [("Hi", "Hello!", "Who are you?", "nano"), ("Bye", "Goodbye!")])
    first, second = corpus.tokens[: corpus.lens[0]], corpus.tokens[corpus.lens[0] :]
    for ids, start, prompt, answer in (
        (first, corpus.answer_starts[0], ["Hi", "Hello!", "Who are you?"], "nano"),
        (second, corpus.answer_starts[1], ["Bye"], "Goodbye!"),
    ):
        assert tokenizer.decode(ids[:start].tolist(), skip_special_tokens=False) == render_prompt(prompt)
        assert tokenizer.decode(ids[start:-1].tolist()) == answer
        assert ids[-1] == EOS_ID


def test_a_corpus_reads_back(corpus: Corpus, tmp_path: Path) -> None:
    corpus.save(tmp_path / "corpus.npz")
    restored = Corpus.load(tmp_path / "corpus.npz")
    for ours, theirs in zip(vars(corpus).values(), vars(restored).values(), strict=True):
        assert (ours == theirs).all()


def wheel(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as package:
        for name, text in files.items():
            package.writestr(name, text)
    return path


def test_chats_are_answers_to_the_few_messages_before_the_user_first(tmp_path: Path) -> None:
    turns = [[{"text": text}] for text in "abcde"] + [[{"text": "see https://example.org"}]]
    wheel(
        tmp_path / "chitchat_dataset-0.whl", {"chitchat_dataset/dataset.json": json.dumps({"x": {"messages": turns}})}
    )
    assert CHITCHAT.conversations(tmp_path) == [("a", "b"), ("b", "c"), ("a", "b", "c", "d"), ("b", "c", "d", "e")]


def test_definitions_are_read_from_the_debian_package(tmp_path: Path) -> None:
    lines = '  1 licence text\n00001740 03 n 01 entity 0 003 ~ 0 | that which is; "an example"\n'
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz") as package:
        for part in ("noun", "verb", "adj", "adv"):
            data = lines.encode() if part == "noun" else b""
            member = tarfile.TarInfo(f"./usr/share/wordnet/data.{part}")
            member.size = len(data)
            package.addfile(member, io.BytesIO(data))
    header = f"{'data.tar.xz/':16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content.getvalue()):<10}`\n"
    (tmp_path / "wordnet-base_1.deb").write_bytes(b"!<arch>\n" + header.encode() + content.getvalue())
    assert WORDNET.conversations(tmp_path) == [("What does entity mean?", "entity: that which is.")]


def test_every_source_names_its_licence() -> None:
    assert all(source.licence and source.name for source in SOURCES)
    assert all(len(conversation) == 2 for conversation in ABOUT)


def test_a_package_that_cannot_be_fetched_or_read_is_named(tmp_path: Path) -> None:
    missing = Source("poems", "MIT", ("no-such-client", "get"), "poems-*.whl", CHITCHAT.read, repeats=1)
    with pytest.raises(ConfigError, match=r"poems.*cannot be fetched.*put it into"):
        missing.conversations(tmp_path)
    (tmp_path / "chitchat_dataset-0.whl").write_bytes(b"no archive")
    with pytest.raises(ConfigError, match="cannot be read"):
        CHITCHAT.conversations(tmp_path)
