"""What nano drafted behind every token of its answers, in files, and requests of a simulation that say it again.

Of each position there is what `NUM_MASKS` masks say, and narrower blocks and smaller groups are taken to draft the
first of these. With fewer masks nano says a little else: its tokens per forward differ by up to 5%.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from one_forward_replay import MOST_MASKS, Draft, forward, num_agreeing

from dlm_serve.decoding import Mode, ModeSettings
from dlm_serve.decoding.one_forward.plan import SECOND_IS_RIGHT

FOLDER = Path(__file__).parent / "drafts"
NUM_MASKS = MOST_MASKS
MOST_NEW_TOKENS = 256
"""What the host knows of the length of an answer, as `dlm_serve.evaluation.load` asks."""


@dataclass(eq=False)
class RecordedText:
    """A prompt with its answer and what was drafted; see `Text` in `simulated_texts.py`."""

    ids: list[int]
    num_prompt: int
    drafts: Sequence[Draft]
    """Behind each token of the answer but the last."""
    max_new_tokens: int = MOST_NEW_TOKENS
    _yields: dict[ModeSettings, float] = field(default_factory=dict, repr=False)

    @property
    def length(self) -> int:
        """Return the tokens that decode steps emit: the first is the prefill's."""
        return len(self.ids) - self.num_prompt - 1

    def draft(self, anchor: int, number: int) -> Draft:
        """Return what `number` masks behind the token at `anchor` say; nothing behind the last one."""
        at = anchor - self.num_prompt
        return self.drafts[at].first(number) if at < len(self.drafts) else Draft()

    def decode(self, random: np.random.Generator | None = None) -> RecordedDecoding:
        """See `Text`; nothing is left to chance."""
        return RecordedDecoding(self)

    def tokens_per_forward(self, settings: ModeSettings) -> float:
        """See `Text`."""
        if settings not in self._yields:
            decoding, emitted, forwards = self.decode(), 0, 0
            while emitted < self.length:
                emitted += decoding.forward(settings)
                forwards += 1
            self._yields[settings] = emitted / forwards
        return self._yields[settings]

    def cut(self, length: int) -> RecordedText:
        """Return one of at most `length` tokens."""
        return replace(self, ids=self.ids[: self.num_prompt + length + 1], drafts=self.drafts[:length], _yields={})


class RecordedDecoding:
    """The forwards of a `RecordedText`: what they verify was drafted, and how much of it is right follows."""

    def __init__(self, text: RecordedText) -> None:
        self._text = text
        self._pending = text.num_prompt
        self._draft = Draft()
        """Empty where there is none."""
        self._settings: ModeSettings | None = None

    def forward(self, settings: ModeSettings) -> int:
        """See `Decoding`. Not for answers that are at their end."""
        before, self._settings = self._settings, settings
        is_kept = before is not None and None not in (before.budget, settings.budget)
        if settings != before and not is_kept:
            self._draft = Draft()
        if settings.mode is Mode.AUTOREGRESSIVE:
            return self._emit(1, Draft())
        if settings.budget is not None:
            done = forward(self._text, self._pending, self._draft, settings.budget, SECOND_IS_RIGHT)
            return self._emit(done.next_pending - self._pending, done.draft)
        if not self._draft.ids:
            return self._emit(0, self._text.draft(self._pending, settings.block_length - 1))
        behind = self._text.ids[self._pending + 1 :]
        return self._emit(min(num_agreeing(self._draft.ids, behind) + 1, len(behind)), Draft())

    def _emit(self, number: int, draft: Draft) -> int:
        """Go on behind `number` tokens, with `draft` of what stands there; return that number."""
        self._pending += number
        self._draft = draft
        return number


def joined(texts: Sequence[RecordedText]) -> RecordedText:
    """Return one text with the answers of all, as long as they are together.

    Where one answer goes over into the next, drafts are of its end, and wrong.
    """
    ids = texts[0].ids[: texts[0].num_prompt]
    drafts: list[Draft] = []
    for text in texts:
        ids += text.ids[text.num_prompt : -1]
        drafts += text.drafts
    return RecordedText(ids, texts[0].num_prompt, drafts[:-1], max_new_tokens=len(ids))


def save(name: str, texts: Sequence[RecordedText]) -> None:
    """Write `FOLDER/NAME.npz`.

    Of T texts: `ids`, one text behind the other, of which `num_tokens` [T] belong to each and `num_prompt` [T] of these
    to its prompt. Of the N tokens with a draft, one text behind the other: `drafted` [N, NUM_MASKS] ids, `second`
    [N, NUM_MASKS] ids and `confidence` [N, NUM_MASKS], which is exact enough as it is (float16).
    """
    drafts = [draft for text in texts for draft in text.drafts]
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(
        FOLDER / f"{name}.npz",
        ids=np.array([token for text in texts for token in text.ids], np.uint16),
        num_tokens=np.array([len(text.ids) for text in texts], np.uint16),
        num_prompt=np.array([text.num_prompt for text in texts], np.uint16),
        drafted=np.array([draft.ids for draft in drafts], np.uint16),
        second=np.array([draft.second for draft in drafts], np.uint16),
        confidence=np.array([draft.confidence for draft in drafts], np.float16),
    )


def load(name: str) -> list[RecordedText]:
    """Return the texts of `FOLDER/NAME.npz`."""
    with np.load(FOLDER / f"{name}.npz") as file:
        columns = (map(tuple, file[part].tolist()) for part in ("drafted", "second", "confidence"))
        drafts = iter([Draft(*draft) for draft in zip(*columns, strict=True)])
        ids, texts = iter(file["ids"].tolist()), []
        for num_tokens, num_prompt in zip(file["num_tokens"].tolist(), file["num_prompt"].tolist(), strict=True):
            of_text = [next(ids) for _ in range(num_tokens)]
            texts.append(RecordedText(of_text, num_prompt, [next(drafts) for _ in range(num_tokens - num_prompt - 1)]))
    return texts
