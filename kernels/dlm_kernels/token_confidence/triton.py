"""Token confidence in Triton: each program reads one stretch of one row, a second kernel merges a row's stretches.

No program reads what another has read, nothing is copied to float32 in memory, and shapes alone decide
the grid, so that a graph can capture it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

STRETCH = 8192


@triton.jit
def _stretch_kernel(
    logits,
    best_value,
    best_id,
    maximum,
    exp_sum,
    weighted_sum,
    stride_row,
    exclude_id,
    V: tl.constexpr,
    STRETCH: tl.constexpr,
    DROP_EXCLUDED: tl.constexpr,
):
    """The best score and the softmax's sums, relative to the maximum, of stretch i_s of row i_n."""
    i_n, i_s = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start = i_s * STRETCH
    o_id = start + tl.arange(0, STRETCH)
    b_x = tl.load(logits + i_n * stride_row + o_id, mask=o_id < V, other=float("-inf")).to(tl.float32)
    top = float("-inf")
    if (exclude_id >= start) & (exclude_id < start + STRETCH):
        if not DROP_EXCLUDED:
            top = tl.load(logits + i_n * stride_row + exclude_id).to(tl.float32)
        b_x = tl.where(o_id == exclude_id, float("-inf"), b_x)
    value = tl.max(b_x, 0)
    index = tl.min(tl.where(b_x == value, o_id, V - 1), 0)
    excluded, top = top, tl.maximum(top, value)
    # Finite, even where a score or all of a stretch are -inf: their exponentials are 0 in any case.
    shift = tl.where(top == float("-inf"), 0.0, top)
    b_shifted = tl.maximum(b_x - shift, -1e4)
    b_exp = tl.exp(b_shifted)
    excluded = tl.maximum(excluded - shift, -1e4)
    i_out = i_n * tl.num_programs(1) + i_s
    tl.store(best_value + i_out, value)
    tl.store(best_id + i_out, index)
    tl.store(maximum + i_out, top)
    tl.store(exp_sum + i_out, tl.sum(b_exp, 0) + tl.exp(excluded))
    tl.store(weighted_sum + i_out, tl.sum(b_exp * b_shifted, 0) + tl.exp(excluded) * excluded)


@triton.jit
def _merge_kernel(
    best_value,
    best_id,
    maximum,
    exp_sum,
    weighted_sum,
    ids,
    confidence,
    entropy,
    S: tl.constexpr,
    BS: tl.constexpr,
):
    """The row i_n from its S stretches."""
    i_n = tl.program_id(0).to(tl.int64)
    o_s = tl.arange(0, BS)
    mask = o_s < S
    o_in = i_n * S + o_s
    b_value = tl.load(best_value + o_in, mask=mask, other=float("-inf"))
    b_max = tl.load(maximum + o_in, mask=mask, other=float("-inf"))
    value, i_best = tl.max(b_value, 0, return_indices=True)
    top = tl.max(b_max, 0)
    b_shift = tl.where(b_max == float("-inf"), 0.0, b_max - top)
    b_weight = tl.where(b_max == float("-inf"), 0.0, tl.exp(b_shift))
    b_sum = tl.load(exp_sum + o_in, mask=mask, other=0.0)
    b_weighted = tl.load(weighted_sum + o_in, mask=mask, other=0.0)
    total = tl.sum(b_weight * b_sum, 0)
    weighted = tl.sum(b_weight * (b_weighted + b_shift * b_sum), 0)
    tl.store(ids + i_n, tl.load(best_id + i_n * S + i_best).to(tl.int64))
    tl.store(confidence + i_n, tl.exp(value - top) / total)
    tl.store(entropy + i_n, tl.log(total) - weighted / total)


def token_confidence(
    logits: torch.Tensor, exclude_id: int, exclude_from_denominator: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `reference.token_confidence`. Raises ValueError for logits whose rows are not contiguous."""
    if logits.dim() != 2 or logits.stride(1) != 1:
        raise ValueError(f"logits: rows must be contiguous, but strides are {logits.stride()}")
    num_rows, vocab_size = logits.shape
    stretch = min(STRETCH, triton.next_power_of_2(vocab_size))
    num_stretches = triton.cdiv(vocab_size, stretch)
    sums = torch.empty(4, num_rows, num_stretches, dtype=torch.float32, device=logits.device)
    best_id = torch.empty(num_rows, num_stretches, dtype=torch.int32, device=logits.device)
    ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    confidence, entropy = torch.empty(2, num_rows, dtype=torch.float32, device=logits.device)
    best_value, maximum, exp_sum, weighted_sum = sums
    _stretch_kernel[(num_rows, num_stretches)](
        logits,
        best_value,
        best_id,
        maximum,
        exp_sum,
        weighted_sum,
        logits.stride(0),
        exclude_id,
        V=vocab_size,
        STRETCH=stretch,
        DROP_EXCLUDED=exclude_from_denominator,
        num_warps=4,
    )
    _merge_kernel[(num_rows,)](
        best_value,
        best_id,
        maximum,
        exp_sum,
        weighted_sum,
        ids,
        confidence,
        entropy,
        S=num_stretches,
        BS=triton.next_power_of_2(num_stretches),
        num_warps=1,
    )
    return ids, confidence, entropy
