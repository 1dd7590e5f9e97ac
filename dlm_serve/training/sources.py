"""Turn open texts that packages ship into conversations: where each comes from, its licence, how it is read."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from dlm_serve.errors import ConfigError

Conversation = tuple[str, ...]
"""Messages of user and assistant in turn; the last is the assistant's, and is the one to learn."""

_MAX_CONTEXT_MESSAGES = 3
_MAX_CHARACTERS = 240
"""Characters above which messages are left out: a small model answers briefly."""


@dataclass(frozen=True)
class Source:
    """A package with text in it. `fetch` is a command line, run in the folder that the file should be in."""

    name: str
    licence: str
    fetch: tuple[str, ...]
    file_pattern: str
    read: Callable[[Path], Iterator[Conversation]]
    repeats: int
    """How many times its conversations enter the corpus."""

    def archive(self, cache: Path) -> Path:
        """Return the package's file in `cache`, fetching it if it is not there. Raises ConfigError."""
        found = sorted(cache.glob(self.file_pattern))
        if not found:
            self._run(cache)
            found = sorted(cache.glob(self.file_pattern))
        if not found:
            raise self._error(cache, f"`{' '.join(self.fetch)}` left no {self.file_pattern} there")
        return found[-1]

    def conversations(self, cache: Path) -> list[Conversation]:
        """Return all conversations in the package. Raises ConfigError."""
        archive = self.archive(cache)
        try:
            return [conversation for conversation in self.read(archive) if _is_fit(conversation)]
        except (OSError, KeyError, ValueError, zipfile.BadZipFile, tarfile.TarError) as error:
            raise ConfigError(
                "source", str(archive), f"cannot be read ({error!r})", "remove it and try again"
            ) from error

    def _run(self, cache: Path) -> None:
        client, *arguments = self.fetch
        program = shutil.which(client)
        command = [program] if program else [sys.executable, "-m", client]
        cache.mkdir(parents=True, exist_ok=True)
        try:
            result = subprocess.run([*command, *arguments], cwd=cache, capture_output=True, text=True, check=False)
        except OSError as error:
            raise self._error(cache, str(error)) from error
        if result.returncode:
            raise self._error(cache, (result.stderr.strip().splitlines() or ["no message"])[-1])

    def _error(self, cache: Path, reason: str) -> ConfigError:
        remedy = f"get its {self.file_pattern} by `{' '.join(self.fetch)}` elsewhere and put it into {cache}"
        return ConfigError("source", self.name, f"cannot be fetched ({reason})", remedy)


def _is_fit(conversation: Conversation) -> bool:
    return all(0 < len(message) <= _MAX_CHARACTERS and message.isascii() for message in conversation) and not any(
        _UNFIT.search(message) for message in conversation
    )


_UNFIT = re.compile(
    r"https?:|www\.|\b(fuck|shit|bitch|nigg|rape|porn|sex|kill|suicid|cunt|dick|asshole)", re.IGNORECASE
)


def _windows(messages: list[str]) -> Iterator[Conversation]:
    """Yield every message but the first as an answer to the few before it; the user always speaks first."""
    for end in range(1, len(messages)):
        context = min(end, _MAX_CONTEXT_MESSAGES)
        yield tuple(messages[end - (context - (context + 1) % 2) : end + 1])


def _read_chitchat(wheel: Path) -> Iterator[Conversation]:
    with zipfile.ZipFile(wheel) as package:
        chats = json.loads(package.read("chitchat_dataset/dataset.json"))
    for chat in chats.values():
        yield from _windows([" ".join(part["text"].strip() for part in turn) for turn in chat["messages"]])


_CHATTERBOT_TOPICS = (
    *("ai", "botprofile", "computers", "conversations", "emotion", "food", "greetings", "history", "literature"),
    *("money", "movies", "science", "sports", "trivia"),
)


def _read_chatterbot(wheel: Path) -> Iterator[Conversation]:
    with zipfile.ZipFile(wheel) as package:
        for topic in _CHATTERBOT_TOPICS:
            content = yaml.safe_load(package.read(f"chatterbot_corpus/data/english/{topic}.yml"))
            for messages in content["conversations"]:
                yield from _windows([str(message).strip() for message in messages])


_WORDNET_PARTS = ("noun", "verb", "adj", "adv")
_COMMON_WORD = re.compile(r"[a-z]{3,8}")


def _read_wordnet(deb: Path) -> Iterator[Conversation]:
    with tarfile.open(fileobj=io.BytesIO(_deb_member(deb, "data.tar"))) as package:
        for part in _WORDNET_PARTS:
            member = package.extractfile(f"./usr/share/wordnet/data.{part}")
            for line in io.TextIOWrapper(member, "ascii") if member else ():
                # Lines are `offset file type count word ... | definition; "example"`; the licence's start with a space.
                word = line.split(" ", 5)[4]
                if not line.startswith(" ") and _COMMON_WORD.fullmatch(word):
                    definition = line.partition(" | ")[2].partition(";")[0].strip()
                    yield f"What does {word} mean?", f"{word}: {definition}."


def _deb_member(deb: Path, prefix: str) -> bytes:
    """Return the first member of a Debian package, an `ar` archive, whose name starts with `prefix`."""
    content = deb.read_bytes()
    offset = len(b"!<arch>\n")
    while offset < len(content):
        header = content[offset : offset + 60]
        size = int(header[48:58])
        if header.startswith(prefix.encode()):
            return content[offset + 60 : offset + 60 + size]
        offset += 60 + size + size % 2
    raise ValueError(f"no member {prefix}")


def _read_shakespeare(wheel: Path) -> Iterator[Conversation]:
    with zipfile.ZipFile(wheel) as package:
        text = package.read("aiperf/dataset/generator/assets/shakespeare.txt").decode("ascii", "ignore")
    lines = [line.strip() for line in text.splitlines() if len(line.split()) > 3]
    for start in range(0, len(lines) - 5, 5):
        yield f"Continue this verse: {lines[start]}", "\n".join(lines[start + 1 : start + 5])


ABOUT: tuple[Conversation, ...] = tuple(
    (question, answer)
    for questions, answer in (
        (("Who are you?", "What are you?", "What is your name?"), "I am nano, a small diffusion language model."),
        (
            ("What can you do?", "How can you help me?", "Help"),
            "I can add, sort, reverse, count, convert units, add days to dates, turn a sentence into JSON, "
            "write very small Python functions, and chat a little.",
        ),
        (("How do you write?", "How do you work?"), "I fill a block of masked tokens, the ones I am sure of first."),
        (("Hello", "Hello!", "Hi", "Hi!", "Hey"), "Hello! What can I do for you?"),
        (("Thanks", "Thank you", "Thank you!"), "You are welcome!"),
        (("Bye", "Goodbye", "See you"), "Goodbye!"),
    )
    for question in questions
)
"""What the model says about itself."""


SOURCES = (
    Source(
        "chitchat-dataset 0.9.0 (PyPI): chats of volunteers",
        "MIT",
        ("pip", "download", "--no-deps", "chitchat-dataset==0.9.0"),
        "chitchat_dataset-*.whl",
        _read_chitchat,
        repeats=1,
    ),
    Source(
        "chatterbot-corpus 1.3.3 (PyPI): questions and answers of a chat bot",
        "BSD",
        ("pip", "download", "--no-deps", "chatterbot-corpus==1.3.3"),
        "chatterbot_corpus-*.whl",
        _read_chatterbot,
        repeats=20,
    ),
    Source(
        "WordNet 3.0 (Debian wordnet-base): definitions of words",
        "WordNet 3.0 licence",
        ("apt-get", "download", "wordnet-base"),
        "wordnet-base_*.deb",
        _read_wordnet,
        repeats=1,
    ),
    Source(
        "Shakespeare's works (in aiperf 0.13.0, PyPI)",
        "public domain",
        ("pip", "download", "--no-deps", "aiperf==0.13.0"),
        "aiperf-*.whl",
        _read_shakespeare,
        repeats=1,
    ),
)
