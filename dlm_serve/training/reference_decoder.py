"""Decode with the training model and the server's own step functions, without a cache.

Every forward rereads everything: the committed tokens causally, the block as its phase requires. This is slow for
long texts, but it scores a model where it is trained, and shows plainly what the engine does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dlm_serve.decoding import RowOptions, Rows, TokenChoice
from dlm_serve.decoding.denoise import is_denoising
from dlm_serve.families import NEMOTRON_LABS_DIFFUSION
from dlm_serve.training.layout import CLEAN, Layout, Mask
from dlm_serve.training.model import DiffusionModel

_COMMIT = NEMOTRON_LABS_DIFFUSION.commit


@dataclass
class Answer:
    """The answer to one prompt, and its forwards over blocks or tokens after the prompt's own."""

    ids: list[int]
    nfe: int = 0
    accepted: tuple[int, ...] = ()
    """Number of tokens emitted by each causal forward."""


@dataclass(frozen=True)
class _Batch:
    """B sequences that decode together: committed tokens [B, T], how many of them are real, and their blocks."""

    committed: torch.Tensor
    lens: torch.Tensor
    rows: Rows


@torch.no_grad()
def decode(
    model: DiffusionModel, prompts: Sequence[Sequence[int]], options: RowOptions, max_new_tokens: int
) -> list[Answer]:
    """Return greedy answers to `prompts`, up to and including a stop id of `options`."""
    device = model.inv_freq.device
    mask_token_id = model.mask_token_id
    lens = torch.tensor([len(prompt) for prompt in prompts], device=device)
    committed = torch.zeros(
        len(prompts), int(lens.max()) + max_new_tokens + options.block_length, dtype=torch.int64, device=device
    )
    for row, prompt in enumerate(prompts):
        committed[row, : len(prompt)] = torch.tensor(prompt, device=device)
    rows = Rows.of([options] * len(prompts), options.block_length).to(device)
    pending = _seeds(model, committed, lens)
    batch = _Batch(committed, lens, rows.start_block(pending, mask_token_id))
    answers = [Answer([token]) for token in pending.tolist()]
    open_rows = list(range(len(prompts)))
    while True:
        keep = [i for i, row in enumerate(open_rows) if not _is_done(answers[row], options, max_new_tokens)]
        if not keep:
            return [_cut(answer, options, max_new_tokens) for answer in answers]
        if len(keep) < len(open_rows):
            batch, open_rows = _select(batch, torch.tensor(keep, device=device)), [open_rows[i] for i in keep]
        batch = _step(model, batch, [answers[row] for row in open_rows])


def _seeds(model: DiffusionModel, committed: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
    """Return the first token of each answer [B], from a causal forward over the prompts [B, T]."""
    position = torch.arange(int(lens.max()), dtype=torch.int32, device=lens.device).expand(len(lens), -1)
    clean = torch.full_like(position, CLEAN)
    mask = Layout(torch.zeros_like(position), position, clean, position + 1).dense_mask()
    hidden = model(committed[:, : position.shape[1]], position, mask)
    logits = model.diffusion_head(hidden[torch.arange(len(lens), device=lens.device), lens - 1])
    return TokenChoice(model.mask_token_id).greedy(logits[:, None]).ids[:, 0]


def _step(model: DiffusionModel, batch: _Batch, answers: list[Answer]) -> _Batch:
    """Run one forward of all rows and append what they emit to `answers`."""
    rows, width = batch.rows, batch.rows.width
    spec = _COMMIT.attention_spec(rows, batch.lens, model.mask_token_id)
    context = int(batch.lens.max())
    tokens = torch.cat((batch.committed[:, :context], rows.tokens), dim=1)
    positions, mask = _positions_and_mask(batch, context, is_denoising(rows.phase))
    hidden = model(tokens, positions, mask, drafting=torch.nn.functional.pad(spec.lora_on, (context, 0)))
    logits = model.diffusion_head(hidden[:, context:])
    columns = batch.lens[:, None] + torch.arange(width, device=tokens.device)
    prediction = TokenChoice(model.mask_token_id).greedy(logits)

    after, output = _COMMIT.advance(rows, prediction, model.mask_token_id)
    # A causal forward commits the row's first tokens, as many as it emits: the pending one and those accepted.
    kept = torch.arange(width, device=tokens.device) < output.lens[:, None]
    batch.committed.scatter_(1, columns, torch.where(kept, _entered(rows, output.tokens), 0))
    for answer, emitted, count in zip(answers, output.tokens.tolist(), output.lens.tolist(), strict=True):
        answer.nfe += 1
        answer.ids += emitted[:count]
        answer.accepted += (count,) if count else ()
    return _Batch(batch.committed, batch.lens + output.lens, after)


def _entered(rows: Rows, emitted: torch.Tensor) -> torch.Tensor:
    """Return the tokens whose KV a causal forward commits: the pending one, then all emitted ones but the last."""
    return torch.cat((rows.tokens[:, :1], emitted[:, :-1]), dim=1)


def _positions_and_mask(batch: _Batch, context: int, bidirectional: torch.Tensor) -> tuple[torch.Tensor, Mask]:
    """Return positions and mask: committed tokens at their columns, then the block, which starts at position `lens`."""
    width, rows = batch.rows.width, len(batch.lens)
    column = torch.arange(context + width, dtype=torch.int32, device=batch.lens.device).expand(rows, -1)
    in_block = column >= context
    lens = batch.lens.to(torch.int32)[:, None]
    position = torch.where(in_block, column - context + lens, column)
    noisy = in_block & bidirectional[:, None]
    real = torch.where(in_block, column - context < batch.rows.new_len[:, None], column < lens)
    placed = Layout(
        document=torch.where(real, 0, 1).to(torch.int32),
        position=position,
        block=torch.where(noisy, 0, CLEAN).to(torch.int32),
        horizon=torch.where(noisy, lens, position + 1),
    )
    return position, placed.dense_mask()


def _select(batch: _Batch, keep: torch.Tensor) -> _Batch:
    return _Batch(batch.committed[keep], batch.lens[keep], batch.rows.gather(keep))


def _is_done(answer: Answer, options: RowOptions, max_new_tokens: int) -> bool:
    return len(answer.ids) >= max_new_tokens or any(stop in answer.ids for stop in options.stop_ids)


def _cut(answer: Answer, options: RowOptions, max_new_tokens: int) -> Answer:
    stops = [answer.ids.index(stop) + 1 for stop in options.stop_ids if stop in answer.ids]
    return Answer(answer.ids[: min([max_new_tokens, *stops])], answer.nfe, answer.accepted)
