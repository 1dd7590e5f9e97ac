"""Draft windows: drafts verified by as many rows as they have tokens, in agreement with one token per window.

Semantics: `SDLM_generate` with `self_speculative` (`sdlm_generator.py` of OpenGVLab/SDLM). Window r of a draft takes
its first r tokens as decided and puts masks behind token r. Its first slot says what should follow token r, and all
of its slots are the next draft if the run of agreeing tokens ends there.

A row in phase `DRAFT` is the last token of a prompt and masks: its first window, whose predictions are the first
draft. Between steps a row in phase `VERIFY` holds the draft, and before it the decided token whose causal KV is
missing, the last of a draft that was accepted as a whole.
"""

from __future__ import annotations

import torch

from dlm_serve.decoding.attention_spec import AttentionSpec
from dlm_serve.decoding.modes import Phase
from dlm_serve.decoding.rows import Rows
from dlm_serve.decoding.step_output import StepOutput
from dlm_serve.decoding.token_choice import accepted_lens


def draft_windows(rows: Rows, number: int, width: int, mask_token_id: int) -> Rows:
    """Return `number` rows of `width` tokens for each of B `rows`, [B * number]: a window behind each drafted token.

    Those past the end of a shorter draft repeat its last. Where there is no draft yet all are the first window.
    """
    index = torch.arange(rows.tokens.shape[0], device=rows.tokens.device).repeat_interleave(number)
    tokens = torch.nn.functional.pad(rows.tokens, (0, max(0, width - rows.width)), value=mask_token_id)
    each = rows.replace(tokens=tokens).gather(index, width)
    num_before = each.new_len - each.block_length
    last = torch.where(each.phase == Phase.DRAFT, 0, each.block_length - 1)
    r = torch.arange(number, device=index.device).repeat(rows.tokens.shape[0]).minimum(last)
    num_decided = (num_before + r + 1)[:, None]
    return each.replace(
        tokens=torch.where(each.columns < num_decided, each.tokens, mask_token_id),
        new_len=(num_before + r + each.block_length).to(torch.int32),
        phase=torch.full_like(each.phase, Phase.DENOISE),
    )


def keeping_last(spec: AttentionSpec, rows: Rows, number: int) -> AttentionSpec:
    """Return the spec of `number` windows for each of `rows` in which the last keeps the KV of decided and drafted."""
    of_group = torch.arange(number, device=rows.tokens.device).repeat(rows.tokens.shape[0])
    return spec.keeping(of_group == (rows.block_length - 1).repeat_interleave(number))


def verify(rows: Rows, ids: torch.Tensor, mask_token_id: int) -> tuple[Rows, StepOutput]:
    """Return the rows after a forward over their windows, which predicted `ids` [B, number, W], and what they emit.

    A row without a draft emits nothing: its one token is emitted already, and the draft follows it.
    """
    columns = rows.columns
    num_rows, number, width = ids.shape
    num_before = (rows.new_len - rows.block_length).long()[:, None]
    r = torch.arange(number, device=ids.device)[None, :]
    follows = ids.gather(2, (num_before + r).clamp(max=width - 1)[..., None]).squeeze(2)
    drafted = rows.tokens.gather(1, (num_before + 1 + r).clamp(max=rows.width - 1))
    verifying = (rows.phase == Phase.VERIFY)[:, None]
    agrees = (follows == drafted) & (r + 1 < rows.block_length[:, None]) & verifying
    num_accepted = accepted_lens(agrees)[:, None]

    end = num_before + num_accepted
    # The last window kept the KV of all tokens of the draft but the last.
    num_missing = ((num_accepted == rows.block_length[:, None]) & verifying).long()
    decided = rows.tokens.gather(1, (columns + end - num_missing).clamp(max=rows.width - 1))
    draft = ids[torch.arange(num_rows, device=ids.device), num_accepted.squeeze(1) - 1]
    draft = draft.gather(1, (columns + end - 1 - num_missing).clamp(0, width - 1))
    new_len = num_missing + rows.block_length[:, None]
    after = rows.replace(
        tokens=torch.where(columns < num_missing, decided, torch.where(columns < new_len, draft, mask_token_id)),
        new_len=new_len.squeeze(1).to(torch.int32),
        num_emitted=num_missing.squeeze(1).to(torch.int32),
        phase=torch.full_like(rows.phase, Phase.VERIFY),
    )
    emitted = rows.tokens.gather(1, (columns + rows.num_emitted[:, None]).clamp(max=rows.width - 1).long())
    return after, StepOutput(emitted, (end.squeeze(1) - rows.num_emitted).to(torch.int32))
