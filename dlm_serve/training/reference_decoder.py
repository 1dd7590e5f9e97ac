"""Decode with the training model and the server's own step functions, without a cache.

Every forward rereads everything: the committed tokens causally, the block as its phase requires. This is slow for
long texts, but it scores a model where it is trained, and shows plainly what the engine does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from dlm_serve.decoding import AttentionSpec, RowOptions, Rows, TokenChoice
from dlm_serve.families import NEMOTRON_LABS_DIFFUSION
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
    """B sequences that decode together: committed tokens [B, T], how many of them are real, and their rows."""

    committed: torch.Tensor
    lens: torch.Tensor
    rows: Rows


@torch.no_grad()
def decode(
    model: DiffusionModel,
    prompts: Sequence[Sequence[int]],
    options: RowOptions,
    max_new_tokens: int,
    width: int | None = None,
) -> list[Answer]:
    """Return greedy answers to `prompts`, up to and including a stop id of `options`, from forwards of `width` tokens.

    Without `width` they hold a block.
    """
    device = model.inv_freq.device
    lens = torch.tensor([len(prompt) for prompt in prompts], device=device)
    committed = torch.zeros(
        len(prompts), int(lens.max()) + max_new_tokens + options.block_length, dtype=torch.int64, device=device
    )
    for row, prompt in enumerate(prompts):
        committed[row, : len(prompt)] = torch.tensor(prompt, device=device)
    rows = Rows.of([options] * len(prompts), options.block_length).to(device)
    pending = _seeds(model, committed, lens)
    batch = _Batch(committed, lens, rows.start_block(pending, model.mask_token_id))
    answers = [Answer([token]) for token in pending.tolist()]
    open_rows = list(range(len(prompts)))
    while True:
        keep = [i for i, row in enumerate(open_rows) if not _is_done(answers[row], options, max_new_tokens)]
        if not keep:
            return [_cut(answer, options, max_new_tokens) for answer in answers]
        if len(keep) < len(open_rows):
            batch, open_rows = _select(batch, torch.tensor(keep, device=device)), [open_rows[i] for i in keep]
        batch = _step(model, batch, [answers[row] for row in open_rows], width or options.block_length)


def _choice(model: DiffusionModel) -> TokenChoice:
    return NEMOTRON_LABS_DIFFUSION.token_choice(model.mask_token_id)


def _seeds(model: DiffusionModel, committed: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
    """Return the first token of each answer [B], from a causal forward over the prompts [B, T]."""
    columns = torch.arange(int(lens.max()), device=lens.device)
    hidden = model(committed[:, : len(columns)], columns[None], (columns <= columns[:, None])[None, None])
    logits = model.diffusion_head(hidden[torch.arange(len(lens), device=lens.device), lens - 1])
    return _choice(model).greedy(logits[:, None]).ids[:, 0]


def _step(model: DiffusionModel, batch: _Batch, answers: list[Answer], width: int) -> _Batch:
    """Run one forward of all rows and append what they emit to `answers`."""
    all_rows = torch.arange(len(batch.lens), device=batch.lens.device)
    rows, context = batch.rows.gather(all_rows, width), int(batch.lens.max())
    spec = _COMMIT.attention_spec(rows, batch.lens, model.mask_token_id)
    tokens = torch.cat((batch.committed[:, :context], spec.tokens), dim=1)
    columns = torch.arange(context, device=tokens.device)
    positions = torch.cat((columns.expand(len(tokens), -1), spec.positions), dim=1)
    hidden = model(tokens, positions, _mask(spec, columns), drafting=pad(spec.lora_on, (context, 0)))
    prediction = _choice(model).greedy(model.diffusion_head(hidden[:, context:]))

    output = _COMMIT.advance_(batch.rows, all_rows, spec.anchors, prediction, model.mask_token_id)
    # A causal forward commits the row's first tokens, as many as it emits: the pending one and those accepted.
    taken = torch.arange(output.tokens.shape[1], device=tokens.device)
    kept = torch.where(taken < output.lens[:, None], spec.tokens[:, : len(taken)], 0)
    batch.committed.scatter_(1, batch.lens[:, None] + taken, kept)
    for answer, emitted, count in zip(answers, output.tokens.tolist(), output.lens.tolist(), strict=True):
        answer.nfe += 1
        answer.ids += emitted[:count]
        answer.accepted += (count,) if count else ()
    return _Batch(batch.committed, batch.lens + output.lens, batch.rows)


def _mask(spec: AttentionSpec, columns: torch.Tensor) -> torch.Tensor:
    """Return who sees whom [B, 1, T, T] among tokens at `columns` [C], which are committed, and a row behind them."""
    causal = (columns <= columns[:, None]).expand(len(spec.tokens), -1, -1)
    committed = (columns < spec.prefix_lens[:, None])[:, None].expand(-1, spec.tokens.shape[1], -1)
    above = pad(causal, (0, spec.tokens.shape[1]))
    return torch.cat((above, torch.cat((committed, spec.visible.mask()), dim=2)), dim=1)[:, None]


def _select(batch: _Batch, keep: torch.Tensor) -> _Batch:
    return _Batch(batch.committed[keep], batch.lens[keep], batch.rows.gather(keep))


def _is_done(answer: Answer, options: RowOptions, max_new_tokens: int) -> bool:
    return len(answer.ids) >= max_new_tokens or any(stop in answer.ids for stop in options.stop_ids)


def _cut(answer: Answer, options: RowOptions, max_new_tokens: int) -> Answer:
    stops = [answer.ids.index(stop) + 1 for stop in options.stop_ids if stop in answer.ids]
    return Answer(answer.ids[: min([max_new_tokens, *stops])], answer.nfe, answer.accepted)
