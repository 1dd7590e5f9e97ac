"""Blocks that are committed as they were refined: bidirectional inside, each starting from masks alone.

Semantics: `generate_with_prefix_cache_block_diff` of Efficient-DLM's authors, and the block KV cache of BD3-LM.
A block is emitted by the forward that settles it. The next one runs over it once more and keeps its KV; it
predicts nothing, so a request that ends with the block does without.
"""

from __future__ import annotations

import torch

from dlm_serve.decoding.forward import Emission, Layout
from dlm_serve.decoding.phase import Phase
from dlm_serve.decoding.refining import columns_of, first_stop, is_refining, refine
from dlm_serve.decoding.rows import Rows
from dlm_serve.decoding.sampling import Prediction


def layout(rows: Rows) -> Layout:
    """All rows are bidirectional and predict their own positions."""
    refining = is_refining(rows.phase)
    return Layout(
        causal_len=torch.zeros_like(rows.new_len),
        new_len=rows.new_len,
        kept_len=torch.where(refining, 0, rows.new_len),
        shift=torch.zeros_like(rows.phase, dtype=torch.int64),
        lora_on=torch.zeros_like(refining),
    )


def advance(rows: Rows, prediction: Prediction, mask_token_id: int) -> tuple[Rows, Emission]:
    """The rows after a forward with these predictions, and what they emit."""
    refining = is_refining(rows.phase)
    refined = refine(rows, prediction, mask_token_id, rows.block_length, first_column=rows.num_emitted)
    now = refined.where(refining, rows)
    settled = now.phase == Phase.COMMIT
    after, emission = hand_out(now)
    after = after.where(settled, now).where(refining, rows.start_masked_block(mask_token_id))
    return after, Emission(emission.tokens, torch.where(settled, emission.lens, 0))


def hand_out(rows: Rows) -> tuple[Rows, Emission]:
    """See `step.hand_out`: the block's tokens up to its end, or up to and including a stop id."""
    stop = first_stop(rows, rows.tokens, rows.num_emitted)
    end = torch.minimum(stop + 1, rows.new_len).to(torch.int32)
    columns = (columns_of(rows) + rows.num_emitted[:, None]).clamp(max=rows.width - 1)
    return rows.replace(num_emitted=end), Emission(rows.tokens.gather(1, columns), end - rows.num_emitted)


def carry(rows: Rows, num_emitted: torch.Tensor, mask_token_id: int) -> tuple[Rows, torch.Tensor]:
    """See `step.carry`: the block stays as it is, and its commit emits the rest."""
    first = rows.tokens.gather(1, num_emitted[:, None].long()).squeeze(1)
    return rows.replace(num_emitted=num_emitted.to(rows.num_emitted.dtype) + 1), first
