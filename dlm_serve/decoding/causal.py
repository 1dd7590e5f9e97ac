"""Blocks that are committed causally: each starts with the token that the commit before it predicted.

Semantics: `generate`, `ar_generate` and `linear_spec_generate` of Nemotron-Labs-Diffusion. A block
is the pending token followed by masks. Refining fills masks; a causal forward over the full block
then emits, and its last prediction is the pending token of the next block.
"""

from __future__ import annotations

import torch

from dlm_serve.decoding.forward import Emission, Layout
from dlm_serve.decoding.phase import Phase
from dlm_serve.decoding.refining import columns_of, first_stop, is_refining, refine
from dlm_serve.decoding.rows import Rows
from dlm_serve.decoding.sampling import Prediction


def layout(rows: Rows) -> Layout:
    """Refining rows are bidirectional and predict their own positions; the others are causal and predict the next."""
    refining = is_refining(rows.phase)
    return Layout(
        causal_len=torch.where(refining, 0, rows.width).to(torch.int32),
        new_len=rows.new_len,
        kept_len=torch.where(refining, 0, rows.new_len),
        shift=(~refining).long(),
        lora_on=rows.phase == Phase.DRAFT,
    )


def advance(rows: Rows, prediction: Prediction, mask_token_id: int) -> tuple[Rows, Emission]:
    """The rows after a forward with these predictions, and what they emit."""
    verified = rows.phase != Phase.COMMIT
    tokens = torch.where(verified[:, None], prediction.ids, _committed_tokens(rows, prediction.ids))
    lens = torch.where(verified, _accepted_lens(rows, prediction.ids), _committed_lens(rows))
    pending = tokens.gather(1, (lens.long() - 1)[:, None]).squeeze(1)

    refining = is_refining(rows.phase)
    refined = refine(rows, prediction, mask_token_id, num_masks=rows.block_length - 1)
    after = refined.where(refining, rows.start_block(pending, mask_token_id))
    return after, Emission(tokens, torch.where(refining, 0, lens).to(torch.int32))


def carry(rows: Rows, num_emitted: torch.Tensor, mask_token_id: int) -> tuple[Rows, torch.Tensor]:
    """See `step.carry`: what is emitted has KV by then. The row goes on with the first token that is not."""
    columns = columns_of(rows) + num_emitted[:, None]
    shifted = rows.tokens.gather(1, columns.clamp(max=rows.width - 1))
    new_len = rows.new_len - num_emitted.to(rows.new_len.dtype)
    tokens = torch.where(columns_of(rows) < new_len[:, None], shifted, mask_token_id)
    return rows.replace(tokens=tokens, new_len=new_len, num_emitted=torch.ones_like(rows.num_emitted)), tokens[:, 0]


def hand_out(rows: Rows) -> tuple[Rows, Emission]:
    """See `step.hand_out`: nothing, since the commit emits a block together with the token behind it."""
    return rows, Emission.empty(rows.tokens.shape[0], rows.width, rows.tokens.device)


def _accepted_lens(rows: Rows, ids: torch.Tensor) -> torch.Tensor:
    """Acceptance length [B]: one more than the drafted tokens that the model itself would have chosen."""
    agrees = (rows.tokens[:, 1:] == ids[:, :-1]) & (columns_of(rows)[:, 1:] < rows.new_len[:, None])
    return 1 + agrees.long().cumprod(1).sum(1)


def _committed_tokens(rows: Rows, ids: torch.Tensor) -> torch.Tensor:
    """The block's tokens after the pending one, then the prediction that follows the block [B, W]."""
    tokens = rows.tokens.roll(-1, dims=1)
    last = (rows.new_len.long() - 1)[:, None]
    return tokens.scatter(1, last, ids.gather(1, last))


def _committed_lens(rows: Rows) -> torch.Tensor:
    """Tokens that a commit emits [B]: all, or up to and including a stop id (masks may be left behind it)."""
    stop = first_stop(rows, rows.tokens)
    stops = (stop > 0) & (stop < rows.width)
    return torch.where(stops, stop, rows.new_len.long())
