"""One decode step: how rows enter the forward (`layout`) and what its predictions do to them (`advance`).

Semantics: `generate`, `ar_generate` and `linear_spec_generate` of Nemotron-Labs-Diffusion. A block
is the pending token followed by masks. Refining fills masks; a causal forward over the full block
then emits, and its last prediction is the pending token of the next block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dlm_serve.decoding.phase import Phase
from dlm_serve.decoding.rows import Rows
from dlm_serve.decoding.sampling import Prediction


@dataclass(frozen=True)
class Layout:
    """How B rows enter one forward.

    Query i of a row sees its own new key j iff `j < new_len and (j <= i or i >= causal_len)`.
    """

    causal_len: torch.Tensor  # [B] int32: 0 is bidirectional, the width is causal
    new_len: torch.Tensor  # [B] int32: real tokens in the row
    keeps_kv: torch.Tensor  # [B] bool: the KV of this forward is committed
    shift: torch.Tensor  # [B] int64: the logits at position i predict position i + shift
    lora_on: torch.Tensor  # [B] bool: the draft adapter counts


@dataclass(frozen=True)
class Emission:
    """Tokens that a step emits: the first `lens[i]` of row i, none where it is 0."""

    tokens: torch.Tensor  # [B, W] int64
    lens: torch.Tensor  # [B] int32

    @classmethod
    def empty(cls, num_rows: int, width: int, device: torch.device | str) -> Emission:
        """No token for any row."""
        tokens = torch.zeros(num_rows, width, dtype=torch.int64, device=device)
        return cls(tokens, torch.zeros(num_rows, dtype=torch.int32, device=device))

    def put(self, rows: torch.Tensor, part: Emission) -> Emission:
        """This with `part`, of no greater width, at `rows` [N] int64."""
        tokens, lens = self.tokens.clone(), self.lens.clone()
        tokens[rows, : part.tokens.shape[1]] = part.tokens
        lens[rows] = part.lens
        return Emission(tokens, lens)


def layout(rows: Rows) -> Layout:
    """How `rows` enter the next forward, as their phases say."""
    refining = _is_refining(rows.phase)
    return Layout(
        causal_len=torch.where(refining, 0, rows.width).to(torch.int32),
        new_len=rows.new_len,
        keeps_kv=~refining,
        shift=shift_of(rows.phase),
        lora_on=rows.phase == Phase.DRAFT,
    )


def shift_of(phase: torch.Tensor) -> torch.Tensor:
    """How far from their own position the logits of rows in `phase` [B] predict, [B] int64."""
    return (~_is_refining(phase)).long()


def advance(rows: Rows, prediction: Prediction, mask_token_id: int) -> tuple[Rows, Emission]:
    """The rows after a forward with these predictions, and what they emit."""
    verified = rows.phase != Phase.COMMIT
    tokens = torch.where(verified[:, None], prediction.ids, _committed_tokens(rows, prediction.ids))
    lens = torch.where(verified, _accepted_lens(rows, prediction.ids), _committed_lens(rows))
    pending = tokens.gather(1, (lens.long() - 1)[:, None]).squeeze(1)

    refining = _is_refining(rows.phase)
    after = _refine(rows, prediction, mask_token_id).where(refining, rows.start_block(pending, mask_token_id))
    return after, Emission(tokens, torch.where(refining, 0, lens).to(torch.int32))


def advance_(table: Rows, indices: torch.Tensor, prediction: Prediction, mask_token_id: int) -> Emission:
    """`advance` of the rows of `table` at `indices` [B] int64, in place: by one kernel on a GPU."""
    if indices.is_cuda:
        from dlm_kernels.block_advance.triton import advance_ as advance_kernel

        predicted = (prediction.ids, prediction.confidence, prediction.entropy)
        return Emission(*advance_kernel(table, indices, *predicted, mask_token_id))
    after, emission = advance(table.gather(indices, prediction.ids.shape[1]), prediction, mask_token_id)
    table.scatter_(indices, after)
    return emission


def carry(rows: Rows, num_emitted: torch.Tensor, mask_token_id: int) -> tuple[Rows, torch.Tensor]:
    """Rows whose refined block is emitted in part already: what is left to emit, and its first token [B].

    `num_emitted` [B] counts the tokens after the block's first that are emitted. The first token
    that is not becomes the pending one; those after it are known, and the next forward commits them.
    """
    columns = _columns(rows) + 1 + num_emitted[:, None]
    shifted = rows.tokens.gather(1, columns.clamp(max=rows.width - 1))
    new_len = rows.new_len - 1 - num_emitted.to(rows.new_len.dtype)
    tokens = torch.where(_columns(rows) < new_len[:, None], shifted, mask_token_id)
    return rows.replace(tokens=tokens, new_len=new_len), tokens[:, 0]


def _is_refining(phase: torch.Tensor) -> torch.Tensor:
    return (phase == Phase.DENOISE) | (phase == Phase.DRAFT)


def _columns(rows: Rows) -> torch.Tensor:
    return torch.arange(rows.width, device=rows.tokens.device)[None, :]


def _refine(rows: Rows, prediction: Prediction, mask_token_id: int) -> Rows:
    """Fill the masks that this step fixes; a block with nothing left to refine goes on to its emitting phase."""
    masked = (rows.tokens == mask_token_id) & (_columns(rows) < rows.new_len[:, None])
    mean_entropy = (prediction.entropy * masked).sum(1) / masked.sum(1)
    converged = (mean_entropy - rows.mean_entropy).abs() < rows.convergence_threshold
    final = converged | (rows.step + 1 >= rows.steps)
    fixed = masked & (_is_selected(rows, prediction.confidence, masked) | final[:, None])

    tokens = torch.where(fixed, prediction.ids, rows.tokens)
    still_masked = masked & ~fixed
    denoising = rows.phase == Phase.DENOISE
    settled = ~still_masked.any(1) | (denoising & _reaches_stop(rows, tokens, still_masked))
    emitting = torch.where(denoising, Phase.DENOISE.after_refining, Phase.DRAFT.after_refining).to(torch.int32)
    return rows.replace(
        tokens=tokens,
        phase=torch.where(settled, emitting, rows.phase),
        step=rows.step + 1,
        mean_entropy=mean_entropy.to(torch.float32),
    )


def _is_selected(rows: Rows, confidence: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """Masks to fix in this step [B, W]: the most confident ones up to the quota, and all that reach the threshold.

    With a threshold the quota is 1; without one, the block's masks are split evenly over its steps,
    the earlier steps taking the remainder.
    """
    num_masks = rows.block_length - 1
    scheduled = num_masks // rows.steps + (rows.step < num_masks % rows.steps)
    quota = torch.where(rows.threshold.isinf(), scheduled, 1)
    order = confidence.masked_fill(~masked, float("-inf")).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    return (rank < quota[:, None]) | (confidence >= rows.threshold[:, None])


def _first_stop(rows: Rows, tokens: torch.Tensor) -> torch.Tensor:
    """The column of the first stop id in each row [B], or the width where there is none."""
    is_stop = (tokens[:, :, None] == rows.stop_ids[:, None, :]).any(-1) & (_columns(rows) < rows.new_len[:, None])
    return torch.where(is_stop, _columns(rows), rows.width).amin(1)


def _reaches_stop(rows: Rows, tokens: torch.Tensor, still_masked: torch.Tensor) -> torch.Tensor:
    """Whether all tokens up to a stop id are known [B]: what follows it cannot matter."""
    first_stop = _first_stop(rows, tokens)
    open_before = (still_masked & (_columns(rows) < first_stop[:, None])).any(1)
    return (first_stop < rows.width) & ~open_before


def _accepted_lens(rows: Rows, ids: torch.Tensor) -> torch.Tensor:
    """Acceptance length [B]: one more than the drafted tokens that the model itself would have chosen."""
    agrees = (rows.tokens[:, 1:] == ids[:, :-1]) & (_columns(rows)[:, 1:] < rows.new_len[:, None])
    return 1 + agrees.long().cumprod(1).sum(1)


def _committed_tokens(rows: Rows, ids: torch.Tensor) -> torch.Tensor:
    """The block's tokens after the pending one, then the prediction that follows the block [B, W]."""
    tokens = rows.tokens.roll(-1, dims=1)
    last = (rows.new_len.long() - 1)[:, None]
    return tokens.scatter(1, last, ids.gather(1, last))


def _committed_lens(rows: Rows) -> torch.Tensor:
    """Tokens that a commit emits [B]: all, or up to and including a stop id (masks may be left behind it)."""
    first_stop = _first_stop(rows, rows.tokens)
    stops = (first_stop > 0) & (first_stop < rows.width)
    return torch.where(stops, first_stop, rows.new_len.long())
