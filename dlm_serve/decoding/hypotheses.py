"""Drafts verified by as many rows as they have tokens: self-speculation that agrees with one token per window.

Semantics: `SDLM_generate` with `self_speculative` (`sdlm_generator.py` of OpenGVLab/SDLM). Hypothesis r of a draft
takes its first r tokens as decided and puts a window of masks behind token r. Its first slot says what should
follow token r, and all of its slots are the next draft if the run of agreeing tokens ends there.

Between steps a row in phase `VERIFY` holds the draft, and before it the token whose causal KV is missing, if there
is one: the last of a draft that was accepted as a whole.
"""

from __future__ import annotations

import torch

from dlm_serve.decoding.forward import Emission
from dlm_serve.decoding.phase import Phase
from dlm_serve.decoding.refining import columns_of
from dlm_serve.decoding.rows import Rows


def start_draft(rows: Rows, ids: torch.Tensor) -> Rows:
    """Rows behind their first windows, whose predictions `ids` [B, W] are the draft; its first token is emitted."""
    return rows.replace(
        tokens=torch.where(columns_of(rows) < rows.block_length[:, None], ids, rows.tokens),
        new_len=rows.block_length.clone(),
        num_emitted=torch.ones_like(rows.num_emitted),
        phase=torch.full_like(rows.phase, Phase.VERIFY),
    )


def hypotheses(rows: Rows, number: int, mask_token_id: int) -> Rows:
    """`number` rows for each of the B `rows`, [B * number]: the windows behind each token of its draft.

    Those past the end of a shorter draft repeat its last.
    """
    index = torch.arange(rows.tokens.shape[0], device=rows.tokens.device).repeat_interleave(number)
    each = rows.gather(index)
    num_before = each.new_len - each.block_length
    r = torch.arange(number, device=index.device).repeat(rows.tokens.shape[0]).minimum(each.block_length - 1)
    num_decided = (num_before + r + 1)[:, None]
    return each.replace(
        tokens=torch.where(columns_of(each) < num_decided, each.tokens, mask_token_id),
        new_len=(num_before + r + each.block_length).to(torch.int32),
        phase=torch.full_like(each.phase, Phase.DENOISE),
    )


def verify(rows: Rows, ids: torch.Tensor, mask_token_id: int) -> tuple[Rows, Emission]:
    """The rows after a forward over their hypotheses, which predicted `ids` [B, number, W], and what they emit."""
    columns = columns_of(rows)
    num_rows, number, width = ids.shape
    num_before = (rows.new_len - rows.block_length).long()[:, None]
    r = torch.arange(number, device=ids.device)[None, :]
    follows = ids.gather(2, (num_before + r).clamp(max=width - 1)[..., None]).squeeze(2)
    drafted = rows.tokens.gather(1, (num_before + 1 + r).clamp(max=rows.width - 1))
    agrees = (follows == drafted) & (r + 1 < rows.block_length[:, None])
    num_accepted = 1 + agrees.long().cumprod(1).sum(1, keepdim=True)

    end = num_before + num_accepted
    is_whole = (num_accepted == rows.block_length[:, None]).long()
    last = rows.tokens.gather(1, end - 1)
    draft = ids[torch.arange(num_rows, device=ids.device), num_accepted.squeeze(1) - 1]
    draft = draft.gather(1, (columns + end - 1 - is_whole).clamp(0, width - 1))
    tokens = torch.where((columns == 0) & (is_whole == 1), last, draft)
    new_len = is_whole + rows.block_length[:, None]
    after = rows.replace(
        tokens=torch.where(columns < new_len, tokens, mask_token_id),
        new_len=new_len.squeeze(1).to(torch.int32),
        num_emitted=is_whole.squeeze(1).to(torch.int32),
    )
    emitted = rows.tokens.gather(1, (columns + rows.num_emitted[:, None]).clamp(max=rows.width - 1).long())
    return after, Emission(emitted, (end.squeeze(1) - rows.num_emitted).to(torch.int32))
