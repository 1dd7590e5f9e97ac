"""Advance rows in their table as `CausalCommit.advance` does, in one Triton program per row.

As tensor functions this takes some 140 launches, a twentieth of an 8B model's step. The reference explains each line;
phases are numbered as in `decoding.modes.Phase`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

DENOISE = tl.constexpr(1)
DRAFT = tl.constexpr(2)
VERIFY = tl.constexpr(3)
COMMIT = tl.constexpr(4)
SPECULATE = tl.constexpr(5)


@triton.jit
def _first_stop(b_tokens, b_real, p_stops, o_w, NUM_STOPS: tl.constexpr, W: tl.constexpr):
    """Return the column of the first stop id among the real tokens, or W if there is none."""
    stop = W
    for i in tl.static_range(NUM_STOPS):
        stop = tl.minimum(stop, tl.min(tl.where((b_tokens == tl.load(p_stops + i)) & b_real, o_w, W), 0))
    return stop


@triton.jit
def _advance_kernel(
    indices,
    tokens,
    new_len,
    phase,
    step,
    mean_entropy,
    first_phase,
    block_length,
    threshold,
    steps,
    convergence_threshold,
    stop_ids,
    ids,
    confidence,
    entropy,
    out_tokens,
    out_lens,
    stride_tokens,
    stride_ids,
    mask_token_id,
    W: tl.constexpr,
    BW: tl.constexpr,
    NUM_STOPS: tl.constexpr,
):
    """Advance the row at indices[i_b]: denoise its block, or emit it and start the next one."""
    i_b = tl.program_id(0)
    i_r = tl.load(indices + i_b)
    if tl.load(phase + i_r) == SPECULATE:
        return
    o_w = tl.arange(0, BW)
    mask_w = o_w < W
    p_tokens, p_ids, p_stops = tokens + i_r * stride_tokens, ids + i_b * stride_ids, stop_ids + i_r * NUM_STOPS
    b_tokens = tl.load(p_tokens + o_w, mask=mask_w, other=-2)
    b_next = tl.load(p_tokens + o_w + 1, mask=o_w + 1 < W, other=-2)
    b_ids = tl.load(p_ids + o_w, mask=mask_w, other=0)
    b_before = tl.load(p_ids + o_w - 1, mask=mask_w & (o_w > 0), other=0)
    b_conf = tl.load(confidence + i_b * stride_ids + o_w, mask=mask_w, other=0.0)
    b_entropy = tl.load(entropy + i_b * stride_ids + o_w, mask=mask_w, other=0.0)
    now, length, done = tl.load(phase + i_r), tl.load(new_len + i_r), tl.load(step + i_r)
    size, most, least = tl.load(block_length + i_r), tl.load(steps + i_r), tl.load(threshold + i_r)
    b_real = o_w < length
    denoising = (now == DENOISE) | (now == DRAFT)

    # Denoise: which masks are fixed, and whether the block is settled then.
    b_masked = (b_tokens == mask_token_id) & b_real
    num_masked = tl.sum(b_masked.to(tl.int32), 0)
    mean = tl.sum(tl.where(b_masked, b_entropy, 0.0), 0) / tl.maximum(num_masked, 1).to(tl.float32)
    mean = tl.where(num_masked > 0, mean, float("nan"))
    converged = tl.abs(mean - tl.load(mean_entropy + i_r)) < tl.load(convergence_threshold + i_r)
    scheduled = (size - 1) // most + (done < (size - 1) % most).to(tl.int32)
    quota = tl.where(least == float("inf"), scheduled, 1)
    quota = tl.where(done + 1 >= tl.where(converged, 0, most), BW, quota)
    b_column = tl.where(b_masked, b_conf, float("-inf"))
    b_better = (b_column[None, :] > b_conf[:, None]) | (
        (b_column[None, :] == b_conf[:, None]) & (o_w[None, :] < o_w[:, None])
    )
    b_rank = tl.sum((b_better & b_masked[None, :]).to(tl.int32), 1)
    b_fixed = b_masked & (b_rank < tl.where(b_conf >= least, BW, quota))
    b_denoised = tl.where(b_fixed, b_ids, b_tokens)
    b_open = b_masked & ~b_fixed
    stop = _first_stop(b_denoised, b_real, p_stops, o_w, NUM_STOPS, W)
    num_open = tl.sum(b_open.to(tl.int32), 0)
    num_open_before = tl.sum((b_open & (o_w < stop)).to(tl.int32), 0)
    settled = (num_open == 0) | ((now == DENOISE) & (stop < W) & (num_open_before == 0))
    emitting = tl.where(now == DENOISE, COMMIT, VERIFY)

    # Emit: what a commit keeps of the block, what a verification accepts of it.
    b_agrees = (b_tokens == b_before) & b_real
    accepted = tl.min(tl.where((o_w > 0) & ~b_agrees, o_w, BW), 0)
    stop = _first_stop(b_tokens, b_real, p_stops, o_w, NUM_STOPS, W)
    kept = tl.where((stop > 0) & (stop < W), stop, length)
    b_kept = tl.where(o_w == length - 1, b_ids, b_next)
    b_emitted = tl.where(now == COMMIT, b_kept, b_ids)
    num_emitted = tl.where(now == COMMIT, kept, accepted)
    pending = tl.sum(tl.where(o_w == num_emitted - 1, b_emitted, 0), 0)
    tl.store(out_tokens + i_b * W + o_w, b_emitted, mask=mask_w)
    tl.store(out_lens + i_b, tl.where(denoising, 0, num_emitted))

    b_started = tl.where(o_w == 0, pending, mask_token_id)
    tl.store(p_tokens + o_w, tl.where(denoising, b_denoised, b_started), mask=mask_w)
    after_denoising = tl.where(settled, emitting, now)
    tl.store(phase + i_r, tl.where(denoising, after_denoising, tl.load(first_phase + i_r)))
    tl.store(new_len + i_r, tl.where(denoising, length, size))
    tl.store(step + i_r, tl.where(denoising, done + 1, 0))
    tl.store(mean_entropy + i_r, tl.where(denoising, mean, float("nan")))


def advance_(
    rows: Any,
    indices: torch.Tensor,
    ids: torch.Tensor,
    confidence: torch.Tensor,
    entropy: torch.Tensor,
    mask_token_id: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advance the `rows` (a `decoding.Rows`) at `indices` [B] int64 in place by a prediction [B, W].

    Returns the emitted tokens [B, W] int64, of which the first `lens` [B] int32 of each row are valid. Behind the
    columns of `rows` nothing is read or emitted. Those that speculate in one forward are left to `one_forward`.
    """
    batch, width = len(ids), min(ids.shape[1], rows.tokens.shape[1])
    out_tokens = torch.empty(batch, width, dtype=torch.int64, device=ids.device)
    out_lens = torch.empty(batch, dtype=torch.int32, device=ids.device)
    _advance_kernel[(batch,)](
        indices,
        rows.tokens,
        rows.new_len,
        rows.phase,
        rows.step,
        rows.mean_entropy,
        rows.first_phase,
        rows.block_length,
        rows.threshold,
        rows.steps,
        rows.convergence_threshold,
        rows.stop_ids,
        ids.contiguous(),
        confidence.contiguous(),
        entropy.contiguous(),
        out_tokens,
        out_lens,
        rows.tokens.stride(0),
        ids.shape[1],
        mask_token_id,
        W=width,
        BW=max(2, triton.next_power_of_2(width)),
        NUM_STOPS=rows.stop_ids.shape[1],
        num_warps=1,
    )
    return out_tokens, out_lens
