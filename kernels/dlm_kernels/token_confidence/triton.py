"""Token confidence in Triton: each program reads one stretch of one row, and a second kernel merges them.

No program reads what another has read, nothing is copied to float32 in memory, and shapes alone decide
the grid, so that a graph can capture it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

STRETCH = 4096
NUM_WARPS = 2
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _stretch_kernel(
    logits,
    best,
    maximum,
    exp_sum,
    weighted_sum,
    stride_row,
    exclude_id,
    V: tl.constexpr,
    STRETCH: tl.constexpr,
    DROP_EXCLUDED: tl.constexpr,
):
    """Find the best score of stretch i_s of row i_n, and the softmax's sums relative to the maximum times log2(e)."""
    i_n, i_s = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start = i_s * STRETCH
    o_id = start + tl.arange(0, STRETCH)
    b_x = tl.load(logits + i_n * stride_row + o_id, mask=o_id < V, other=float("-inf")).to(tl.float32)
    excluded = float("-inf")
    if (exclude_id >= start) & (exclude_id < start + STRETCH):
        if not DROP_EXCLUDED:
            excluded = tl.load(logits + i_n * stride_row + exclude_id).to(tl.float32)
        b_x = tl.where(o_id == exclude_id, float("-inf"), b_x)
    value = tl.max(b_x, 0)
    top = tl.maximum(excluded, value)
    # Exponents to base 2, all of them rounded against the same maximum. Where a score is -inf, or all are,
    # they stay finite: their powers are 0 in any case.
    shift = tl.where(top == float("-inf"), 0.0, top * LOG2_E)
    b_power = tl.maximum(tl.fma(b_x, LOG2_E, -shift), -1e4)
    power = tl.maximum(tl.fma(excluded, LOG2_E, -shift), -1e4)
    b_exp, exp = tl.math.exp2(b_power), tl.math.exp2(power)
    i_out = i_n * tl.num_programs(1) + i_s
    tl.store(best + i_out, value)
    tl.store(maximum + i_out, tl.where(top == float("-inf"), top, shift))
    tl.store(exp_sum + i_out, tl.sum(b_exp, 0) + exp)
    tl.store(weighted_sum + i_out, tl.sum(b_exp * b_power, 0) + exp * power)


@triton.jit
def _merge_kernel(
    logits,
    best,
    maximum,
    exp_sum,
    weighted_sum,
    ids,
    confidence,
    entropy,
    stride_row,
    exclude_id,
    V: tl.constexpr,
    STRETCH: tl.constexpr,
    S: tl.constexpr,
    BS: tl.constexpr,
):
    """Merge row i_n from its S stretches; only the stretch with the best score is read again."""
    i_n = tl.program_id(0).to(tl.int64)
    o_s = tl.arange(0, BS)
    mask = o_s < S
    o_in = i_n * S + o_s
    b_best = tl.load(best + o_in, mask=mask, other=float("-inf"))
    b_max = tl.load(maximum + o_in, mask=mask, other=float("-inf"))
    value, top = tl.max(b_best, 0), tl.max(b_max, 0)
    i_best = tl.min(tl.where((b_best == value) & mask, o_s, S - 1), 0)
    o_id = i_best * STRETCH + tl.arange(0, STRETCH)
    b_x = tl.load(logits + i_n * stride_row + o_id, mask=o_id < V, other=float("-inf")).to(tl.float32)
    best_id = tl.min(tl.where((b_x == value) & (o_id != exclude_id), o_id, V - 1), 0)

    b_shift = tl.maximum(b_max - top, -1e4)
    b_weight = tl.math.exp2(b_shift)
    b_sum = tl.load(exp_sum + o_in, mask=mask, other=0.0)
    b_weighted = tl.load(weighted_sum + o_in, mask=mask, other=0.0)
    total = tl.sum(b_weight * b_sum, 0)
    weighted = tl.sum(b_weight * (b_weighted + b_shift * b_sum), 0)
    tl.store(ids + i_n, best_id.to(tl.int64))
    tl.store(confidence + i_n, tl.math.exp2(tl.fma(value, LOG2_E, -top)) / total)
    tl.store(entropy + i_n, (tl.math.log2(total) - weighted / total) / LOG2_E)


def token_confidence(
    logits: torch.Tensor, exclude_id: int, exclude_from_denominator: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute `reference.token_confidence`. Raises ValueError for logits whose rows are not contiguous."""
    if logits.dim() != 2 or logits.stride(1) != 1:
        raise ValueError(f"logits: rows must be contiguous, but strides are {logits.stride()}")
    num_rows, vocab_size = logits.shape
    stretch = min(STRETCH, triton.next_power_of_2(vocab_size))
    num_stretches = triton.cdiv(vocab_size, stretch)
    sums = torch.empty(4, num_rows, num_stretches, dtype=torch.float32, device=logits.device).unbind()
    ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    confidence, entropy = torch.empty(2, num_rows, dtype=torch.float32, device=logits.device).unbind()
    shapes = {"V": vocab_size, "STRETCH": stretch}
    _stretch_kernel[(num_rows, num_stretches)](
        logits,
        *sums,
        logits.stride(0),
        exclude_id,
        **shapes,
        DROP_EXCLUDED=exclude_from_denominator,
        num_warps=NUM_WARPS,
    )
    _merge_kernel[(num_rows,)](
        logits,
        *sums,
        ids,
        confidence,
        entropy,
        logits.stride(0),
        exclude_id,
        **shapes,
        S=num_stretches,
        BS=triton.next_power_of_2(num_stretches),
        num_warps=4,
    )
    return ids, confidence, entropy
