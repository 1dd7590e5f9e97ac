"""Replay speculation in one forward on the CPU, faster than it decodes: what forwards it takes, and what they hold.

Answers are the autoregressive ones, so that what a forward accepts is known beforehand, and of its groups only the one
that the next draft comes from has to be run. Drafts are kept: other budgets ask for many of them again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from dlm_serve.bundled import FOLDER
from dlm_serve.decoding import Phase, RowOptions
from dlm_serve.decoding.one_forward import LONGEST_CHAIN
from dlm_serve.decoding.one_forward.plan import AFTER_A_MISS, CHOSEN, MOST_SURE, survival
from dlm_serve.inflation.adapter import Adapter
from dlm_serve.models.checkpoint import DRAFT_ADAPTER_FOLDER
from dlm_serve.training.checkpoint import load_model
from dlm_serve.training.model import DiffusionModel
from dlm_serve.training.reference_decoder import decode
from dlm_serve.training.tasks import TASKS
from dlm_serve.training.tokenizer import EOS_ID, load_tokenizer, render_prompt

MOST_MASKS = LONGEST_CHAIN - 1
COLUMNS = np.arange(LONGEST_CHAIN)
SURVIVED = survival(LONGEST_CHAIN, torch.device("cpu")).numpy()
Numbers = npt.NDArray[Any]
MAX_NEW_TOKENS = 128
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Draft:
    """What stands behind the pending token: most and second most likely tokens, and how sure the first are."""

    ids: tuple[int, ...] = ()
    second: tuple[int, ...] = ()
    confidence: tuple[float, ...] = ()
    is_broken: bool = False

    def beginning_with(self, token: int) -> Draft:
        """Return the draft with `token`, which is right for sure, in place of its first."""
        is_broken = self.is_broken or self.ids[:1] not in ((), (token,))
        return Draft((token, *self.ids[1:]), (token, *self.second[1:]), (CHOSEN, *self.confidence[1:]), is_broken)

    def first(self, number: int) -> Draft:
        """Return what it says of the first `number` tokens."""
        return Draft(self.ids[:number], self.second[:number], self.confidence[:number], self.is_broken)

    def behind(self, number: int, *, is_broken: bool) -> Draft:
        """Return what stands behind the first `number` tokens."""
        return Draft(self.ids[number:], self.second[number:], self.confidence[number:], is_broken)


class Drafted(Protocol):
    """A prompt with its answer, and drafts behind any of its tokens."""

    ids: list[int]
    num_prompt: int

    def draft(self, anchor: int, number: int) -> Draft:
        """Return what `number` masks behind the token at `anchor` say."""


@dataclass
class Text:
    """A prompt with its autoregressive answer, and the drafts of `model` behind any of its tokens."""

    model: DiffusionModel
    ids: list[int]
    num_prompt: int
    known: dict[tuple[int, int], Draft] = field(default_factory=dict)

    @torch.no_grad()
    def draft(self, anchor: int, number: int) -> Draft:
        """Return what `number` masks behind the token at `anchor` say."""
        if (anchor, number) not in self.known:
            length = anchor + 1
            tokens = torch.tensor([self.ids[:length] + [self.model.mask_token_id] * number])
            columns = torch.arange(length + number)
            is_noisy = columns >= length
            mask = (columns <= columns[:, None]) | is_noisy[:, None]
            hidden = self.model(tokens, columns[None], mask[None, None], is_noisy[None])
            logits = self.model.diffusion_head(hidden[0, length:]).float()
            probs = logits.softmax(-1)
            logits[:, self.model.mask_token_id] = -torch.inf
            top = logits.topk(2).indices
            sure = probs.gather(1, top[:, :1])[:, 0]
            self.known[anchor, number] = Draft(
                tuple(top[:, 0].tolist()), tuple(top[:, 1].tolist()), tuple(sure.tolist())
            )
        return self.known[anchor, number]


@dataclass(frozen=True)
class Plan:
    """What enters a forward: tokens of the chain, masks behind each, and second choices."""

    num_main: int
    num_masks: Numbers  # [C]
    has_second: Numbers  # [C] bool
    expected: float
    """Tokens of the answer that it emits if confidences are right."""

    @property
    def num_tokens(self) -> int:
        return self.num_main + int(self.num_masks.sum() + self.has_second.sum())


@lru_cache(maxsize=1 << 16)
def plan(draft: Draft, width: int, rho: float) -> Plan:
    """Return the plan of `decoding.one_forward.plan`, for second choices that are right `rho` of the time."""
    known = 1 + (draft.ids.index(EOS_ID) + 1 if EOS_ID in draft.ids else len(draft.ids))
    known = min(known, LONGEST_CHAIN, width)
    worth = np.float32(AFTER_A_MISS if draft.is_broken else 1.0)
    sure = np.zeros(LONGEST_CHAIN + 1, np.float32)
    sure[0] = 1
    sure[1:known] = np.minimum(np.array(draft.confidence[: known - 1], np.float32) * worth, np.float32(MOST_SURE))
    reach = sure[:-1].cumprod(dtype=np.float32)
    may_stop = COLUMNS >= 0
    if EOS_ID in draft.ids[: known - 1]:
        may_stop[known - 1] = False
    second = np.where(may_stop & (known > COLUMNS + 1), reach * (1 - sure[1:]) * np.float32(rho), 0)

    def masks(worth: Numbers, price: float) -> Numbers:
        number = np.minimum((worth[:, None] * SURVIVED >= price).sum(1), MOST_MASKS)
        return np.where((number > 1) & (worth > 0), number, 0)

    def stops(num_main: int, has_second: Numbers) -> Numbers:
        following = np.append(np.where(num_main > COLUMNS, reach, 0)[1:], 0)
        stop = reach - following - np.where(has_second, second, 0)
        return np.where((num_main > COLUMNS) & may_stop, stop, 0)

    def at(price: float) -> Plan:
        num_main = max(int((reach >= price).sum()), 1)
        has_second = (second > 0) & (second >= price) & (num_main > COLUMNS)
        # Behind the chain it emits one token more, but none behind a stop id.
        expected = float(reach[:num_main].sum() - reach[:num_main][~may_stop[:num_main]].sum())
        return Plan(num_main, masks(stops(num_main, has_second), price), has_second, expected)

    low, high = 0.0, 1.0
    for _ in range(16):
        price = (low + high) / 2
        low, high = (low, price) if at(price).num_tokens <= width else (price, high)
    found, wanted = at(high), at(low)
    num_masks, stop = found.num_masks.copy(), stops(found.num_main, found.has_second)
    room = width - found.num_tokens
    for column in np.argsort(-stop, kind="stable"):
        added = min(int(wanted.num_masks[column] - num_masks[column]), room)
        if stop[column] > 0 and added > 0:
            num_masks[column] += added
            room -= added
    return replace(found, num_masks=num_masks)


@dataclass
class Count:
    """What was counted over all answers of one way."""

    forwards: int = 0
    tokens: int = 0
    expected: float = 0.0
    """Tokens, by the confidences of what was drafted."""
    covered: int = 0
    """Forwards in which a group stood where verification stopped."""
    seconds: int = 0
    """Second choices in rows."""
    found: int = 0
    """How many were right."""


@dataclass(frozen=True)
class Forward:
    """What a forward came to."""

    planned: Plan
    num_right: int
    """Tokens of the draft."""
    has_found: bool
    """Whether a second choice was right behind them."""
    next_pending: int
    """Position of the token that it ends with."""
    draft: Draft
    """Of what stands behind that."""


def forward(text: Drafted, pending: int, draft: Draft, width: int, rho: float) -> Forward:
    """Return what a row of `width` tokens comes to, with `draft` behind the token at `pending`; not at the last."""
    ids, planned = text.ids, plan(draft, width, rho)
    num_right = num_agreeing(draft.ids[: planned.num_main - 1], ids[pending + 1 : pending + planned.num_main])
    next_pending = min(pending + num_right + 1, len(ids) - 1)
    has_found = bool(planned.has_second[num_right]) and draft.second[num_right] == ids[next_pending]
    anchors = [
        (pending + column, int(masks)) for column, masks in enumerate(planned.num_masks[: num_right + 1]) if masks
    ]
    next_draft = following(text, draft, anchors, pending, next_pending)
    if has_found and next_pending + 1 < len(ids):
        next_draft = next_draft.beginning_with(ids[next_pending + 1])
    return Forward(planned, num_right, has_found, next_pending, next_draft)


def num_agreeing(drafted: Sequence[int], ids: Sequence[int]) -> int:
    """Return how many of the first tokens are alike."""
    pairs = zip(drafted, ids, strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(drafted), len(ids)))


def replay(text: Drafted, width: int, rho: float, count: Count) -> None:
    """Add the forwards that `text`'s answer takes in rows of `width` tokens."""
    pending, draft = text.num_prompt, Draft()
    while pending < len(text.ids) - 1:
        done = forward(text, pending, draft, width, rho)
        count.forwards += 1
        count.tokens += done.next_pending - pending
        count.expected += done.planned.expected
        count.covered += bool(done.planned.num_masks[done.num_right])
        count.seconds += int(done.planned.has_second.sum())
        count.found += int(done.has_found)
        pending, draft = done.next_pending, done.draft


def following(
    text: Drafted, draft: Draft, anchors: Sequence[tuple[int, int]], pending: int, next_pending: int
) -> Draft:
    """Return the draft behind `next_pending`: of the last of the groups at `anchors`, else what is left of `draft`."""
    if anchors:
        anchor, number = anchors[-1]
        decided = next_pending - anchor
        if number > decided:
            fresh = text.draft(anchor, number)
            is_broken = fresh.ids[:decided] != tuple(text.ids[anchor + 1 : next_pending + 1])
            return fresh.behind(decided, is_broken=is_broken)
    decided = next_pending - pending
    is_broken = draft.is_broken or draft.ids[:decided] != tuple(text.ids[pending + 1 : next_pending + 1])
    return draft.behind(decided, is_broken=is_broken)


def task_prompts(count: int) -> list[list[int]]:
    """Return `count` held-out prompts, of all tasks alike."""
    examples = [example for task in TASKS.values() for example in task.examples("heldout", count, seed=11)]
    random.Random(3).shuffle(examples)
    encode = partial(load_tokenizer(Path(FOLDER)).encode, add_special_tokens=False)
    return [encode(render_prompt([example.prompt])).ids for example in examples[:count]]


def odd_prompts(count: int) -> list[list[int]]:
    """Return `count` prompts of random tokens, to which nano has no good answer."""
    rng = random.Random(5)
    encode = partial(load_tokenizer(Path(FOLDER)).encode, add_special_tokens=False)
    heads, tails = encode(render_prompt(["a"])).ids, encode(render_prompt(["b"])).ids
    at = next(i for i, (a, b) in enumerate(zip(heads, tails, strict=True)) if a != b)
    return [heads[:at] + rng.choices(range(512, 2048), k=8) + heads[at + 1 :] for _ in range(count)]


def answers(model: DiffusionModel, prompts: Sequence[list[int]], max_new_tokens: int = MAX_NEW_TOKENS) -> list[Text]:
    options = RowOptions(Phase.DRAFT, LONGEST_CHAIN, threshold=0.0, stop_ids=[EOS_ID])
    found = decode(model, prompts, options, max_new_tokens)
    return [Text(model, prompt + answer.ids, len(prompt)) for prompt, answer in zip(prompts, found, strict=True)]


def with_noise(noise: float) -> DiffusionModel:
    """Return nano with noise on its draft adapter, in float32."""
    model = load_model(Path(FOLDER)).eval()
    tensors = Adapter.load(Path(FOLDER) / DRAFT_ADAPTER_FOLDER).with_noise(noise).tensors
    named = {name.removeprefix(PREFIX).removesuffix(".weight"): tensor for name, tensor in tensors.items()}
    assert not model.load_state_dict(named, strict=False).unexpected_keys
    return model
