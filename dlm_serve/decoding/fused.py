"""Windows of masks behind decided tokens: the longest confident run of them is taken, and no forward is spent on KV.

Semantics: `prob_conf` and `entropy_conf` of `SDLM_generate` (`sdlm_inference.py` of OpenGVLab/SDLM). The window is
the last token, its anchor, and `block_length` - 1 masks, bidirectional; it sees all tokens before the anchor, and
the anchor itself only as part of the window. Hence the row of a forward is the decided tokens that have no causal
KV yet, of which the last is the anchor, and the masks: the tokens before the anchor are encoded causally, their KV
is kept, and the anchor's is the business of the next forward. No query needs a mask that is not of that form.
"""

from __future__ import annotations

import math
from enum import StrEnum

import torch

from dlm_serve.decoding.forward import Emission, Layout
from dlm_serve.decoding.phase import Phase
from dlm_serve.decoding.refining import columns_of
from dlm_serve.decoding.rows import Rows
from dlm_serve.decoding.sampling import Prediction


class WindowAlgorithm(StrEnum):
    """How many of a window's tokens are taken. `Rows.algorithm` counts them in this order."""

    PROB_CONF = "prob_conf"
    """As long as they are probable enough."""
    ENTROPY_CONF = "entropy_conf"
    """As long as their distributions have little enough entropy."""
    SELF_SPECULATIVE = "self_speculative"
    """As long as windows behind each of them agree: see `hypotheses`."""


_BY_ENTROPY = tuple(WindowAlgorithm).index(WindowAlgorithm.ENTROPY_CONF)


def entropy_below(threshold: float, vocab_size: int) -> float:
    """The entropy in nats below which a slot's certainty, 1 - entropy / ln(vocabulary), exceeds `threshold`.

    The reference adds 1e-9 inside the logarithm, which moves the certainty by less than 2e-5.
    """
    return (1 - threshold) * math.log(vocab_size)


def layout(rows: Rows) -> Layout:
    """Decided tokens are causal up to the anchor, the window is bidirectional; all predict the next position.

    A row that decodes one token at a time is its anchor alone, and keeps its KV.
    """
    anchor = _anchor(rows)
    return Layout(
        causal_len=anchor,
        new_len=rows.new_len,
        kept_len=torch.where(rows.phase == Phase.DECODE, rows.new_len, anchor),
        shift=torch.ones_like(rows.phase, dtype=torch.int64),
        lora_on=torch.zeros_like(rows.phase, dtype=torch.bool),
    )


def advance(rows: Rows, prediction: Prediction, mask_token_id: int) -> tuple[Rows, Emission]:
    """The rows after a forward with these predictions, and what they emit."""
    num_accepted = _num_accepted(rows, prediction)
    decoded = rows.start_block(prediction.ids[:, 0], mask_token_id)
    window = _next_window(rows, prediction.ids, num_accepted, mask_token_id)
    return decoded.where(rows.phase == Phase.DECODE, window), _decided(rows, prediction.ids, num_accepted)


def hand_out(rows: Rows) -> tuple[Rows, Emission]:
    """See `step.hand_out`: the decided tokens, of which the last is the anchor; of a draft none is."""
    num_decided = _anchor(rows) + (rows.phase != Phase.VERIFY)
    columns = (columns_of(rows) + rows.num_emitted[:, None]).clamp(max=rows.width - 1).long()
    lens = (num_decided - rows.num_emitted).to(torch.int32)
    return rows.replace(num_emitted=num_decided.to(torch.int32)), Emission(rows.tokens.gather(1, columns), lens)


def _anchor(rows: Rows) -> torch.Tensor:
    """The anchor's column [B] int32: the window is the last `block_length` columns."""
    return rows.new_len - rows.block_length


def _num_accepted(rows: Rows, prediction: Prediction) -> torch.Tensor:
    """The longest run of confident slots from the window's first, but at least that one, [B] int64."""
    columns = columns_of(rows)
    by_entropy = (rows.algorithm == _BY_ENTROPY)[:, None]
    limit = rows.threshold[:, None]
    confident = torch.where(by_entropy, prediction.entropy < limit, prediction.confidence > limit)
    before = columns < _anchor(rows)[:, None]
    run = ((confident | before) & (columns < rows.new_len[:, None])).long().cumprod(1).sum(1)
    return (run - _anchor(rows)).clamp(min=1)


def _next_window(rows: Rows, ids: torch.Tensor, num_accepted: torch.Tensor, mask_token_id: int) -> Rows:
    """The rows [old anchor, accepted tokens, masks], all but the masks emitted."""
    columns, anchor = columns_of(rows), _anchor(rows).long()[:, None]
    accepted = ids.gather(1, (anchor + columns - 1).clamp(0, rows.width - 1))
    tokens = torch.where(columns == 0, rows.tokens.gather(1, anchor), accepted)
    num_decided = (1 + num_accepted).to(torch.int32)
    return rows.replace(
        tokens=torch.where(columns < num_decided[:, None], tokens, mask_token_id),
        new_len=num_decided + rows.block_length - 1,
        num_emitted=num_decided,
    )


def _decided(rows: Rows, ids: torch.Tensor, num_accepted: torch.Tensor) -> Emission:
    """The decided tokens that are not emitted yet, then the accepted ones."""
    columns = columns_of(rows) + rows.num_emitted[:, None]
    end = _anchor(rows)[:, None] + 1
    known = rows.tokens.gather(1, columns.clamp(max=rows.width - 1).long())
    new = ids.gather(1, (columns - 1).clamp(0, rows.width - 1).long())
    lens = end.squeeze(1) + num_accepted - rows.num_emitted
    return Emission(torch.where(columns < end, known, new), lens.to(torch.int32))
