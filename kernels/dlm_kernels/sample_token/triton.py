"""Token choice in Triton: each program reads one stretch of one row, a second kernel merges them, a third filters.

Nothing is sorted, and nothing is copied to float32 in memory. Shapes alone decide the grids, so that a graph can
capture them; whether a row is drawn, and from what, is read from tensors.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from dlm_kernels.sample_token.sampling import HOTTEST, Nucleus, Sampling

STRETCH = 4096
GREEDY_WARPS, SAMPLED_WARPS = 2, 8
FILTER_BLOCK = 4096
FILTER_WARPS = 8
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
_HOTTEST = tl.constexpr(HOTTEST)


@triton.jit
def _mix(x):
    """Mix 32 bits, as `reference.mix`."""
    x = x + 0x9E3779B9
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def _noise_bits(seed, position):
    """Return the bits of `reference.noise_bits`."""
    bits = _mix(seed.to(tl.uint32))
    bits = _mix(bits ^ (seed >> 32).to(tl.uint32))
    return _mix(bits ^ position.to(tl.uint32))


@triton.jit
def _log2(x):
    """Return the logarithm to base 2 by the device's instruction; Triton's own is a polynomial of a dozen terms."""
    if INTERPRETED:
        return tl.math.log2(x)
    return libdevice.fast_log2f(x)


@triton.jit
def _gumbel(bits, o_id):
    """Return `reference.gumbel_noise` of the tokens `o_id` in the row of `bits`.

    A uniform number v gives -log(-log(1 - v)). The inner logarithm is taken by its series where v is small: there the
    noise is large and decides. Where v is near 1 it is cut to what float32 can tell from 1.
    """
    v = _mix(bits ^ (o_id.to(tl.uint32) * 0x9E3779B1)).to(tl.float32) * (1 / 4294967296) + (0.5 / 4294967296)
    series = v * (1.0 + v * (0.5 + v * (1 / 3 + v * 0.25)))
    exponential = tl.where(v < 0.03125, series, -LN_2 * _log2(tl.maximum(1.0 - v, 2.98e-8)))
    return -LN_2 * _log2(exponential)


@triton.jit
def _stretch_kernel(
    logits,
    best,
    maximum,
    exp_sum,
    weighted_sum,
    noisy,
    noisy_id,
    positions,
    temperature,
    top_k,
    seed,
    stride_row,
    exclude_id,
    width,
    V: tl.constexpr,
    STRETCH: tl.constexpr,
    DROP_EXCLUDED: tl.constexpr,
    SAMPLED: tl.constexpr,
):
    """Find the best score of stretch i_s of row i_n, and the softmax's sums relative to the maximum times log2(e).

    Of a row that is drawn also the best score under noise, of all tokens whether they are kept or not.
    """
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
    if SAMPLED:
        i_r = i_n // width
        if tl.load(top_k + i_r) > 1:
            heat = 1 / tl.minimum(tl.load(temperature + i_r), _HOTTEST)
            bits = _noise_bits(tl.load(seed + i_r), tl.load(positions + i_n))
            b_noisy = b_x * heat + _gumbel(bits, o_id)
            highest = tl.max(b_noisy, 0)
            tl.store(noisy + i_out, highest)
            tl.store(noisy_id + i_out, tl.min(tl.where(b_noisy == highest, o_id, V - 1), 0))


@triton.jit
def _merge_kernel(
    logits,
    best,
    maximum,
    exp_sum,
    weighted_sum,
    noisy,
    noisy_id,
    top_k,
    ids,
    confidence,
    entropy,
    highest,
    log_total,
    stride_row,
    exclude_id,
    width,
    V: tl.constexpr,
    STRETCH: tl.constexpr,
    S: tl.constexpr,
    BS: tl.constexpr,
    SAMPLED: tl.constexpr,
):
    """Merge row i_n from its S stretches. The best of a row that is not drawn is read again, in one stretch."""
    i_n = tl.program_id(0).to(tl.int64)
    o_s = tl.arange(0, BS)
    mask = o_s < S
    o_in = i_n * S + o_s
    b_best = tl.load(best + o_in, mask=mask, other=float("-inf"))
    b_max = tl.load(maximum + o_in, mask=mask, other=float("-inf"))
    value, top = tl.max(b_best, 0), tl.max(b_max, 0)
    is_drawn = False
    if SAMPLED:
        is_drawn = tl.load(top_k + i_n // width) > 1
    if is_drawn:
        b_noisy = tl.load(noisy + o_in, mask=mask, other=float("-inf"))
        i_best = tl.min(tl.where((b_noisy == tl.max(b_noisy, 0)) & mask, o_s, S - 1), 0)
        chosen = tl.load(noisy_id + i_n * S + i_best)
    else:
        i_best = tl.min(tl.where((b_best == value) & mask, o_s, S - 1), 0)
        o_id = i_best * STRETCH + tl.arange(0, STRETCH)
        b_x = tl.load(logits + i_n * stride_row + o_id, mask=o_id < V, other=float("-inf")).to(tl.float32)
        chosen = tl.min(tl.where((b_x == value) & (o_id != exclude_id), o_id, V - 1), 0)

    b_shift = tl.maximum(b_max - top, -1e4)
    b_weight = tl.math.exp2(b_shift)
    b_sum = tl.load(exp_sum + o_in, mask=mask, other=0.0)
    b_weighted = tl.load(weighted_sum + o_in, mask=mask, other=0.0)
    total = tl.sum(b_weight * b_sum, 0)
    weighted = tl.sum(b_weight * (b_weighted + b_shift * b_sum), 0)
    x = tl.load(logits + i_n * stride_row + chosen).to(tl.float32)
    tl.store(ids + i_n, chosen.to(tl.int64))
    tl.store(confidence + i_n, tl.math.exp2(tl.fma(x, LOG2_E, -top)) / total)
    tl.store(entropy + i_n, (tl.math.log2(total) - weighted / total) / LOG2_E)
    if SAMPLED:
        tl.store(highest + i_n, value)
        tl.store(log_total + i_n, top + tl.math.log2(total))


@triton.jit
def _filter_kernel(
    logits,
    ids,
    confidence,
    highest,
    log_total,
    positions,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    stride_row,
    exclude_id,
    width,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    WITHIN: tl.constexpr,
):
    """Draw row i_n again until the token is one that its filters keep.

    They keep tokens above some score. So if a drawn token is not kept, no token up to its score is: the next one is
    the best under noise of those above it. Each pass over the row finds whether the token is kept and, should it not
    be, the next. Noise is computed only where there is a token above.
    """
    i_n = tl.program_id(0).to(tl.int64)
    i_r = i_n // width
    most, p, least = tl.load(top_k + i_r), tl.load(top_p + i_r), tl.load(min_p + i_r)
    if (most > 1) & ((most < V) | (p < 1) | (least > 0)):
        heat = 1 / tl.minimum(tl.load(temperature + i_r), _HOTTEST)
        bits = _noise_bits(tl.load(seed + i_r), tl.load(positions + i_n))
        top = tl.load(highest + i_n)
        floor = top + tl.where(least > 0, tl.log(tl.maximum(least, 1e-38)), float("-inf")) / heat
        row = logits + i_n * stride_row
        token = tl.load(ids + i_n).to(tl.int32)
        x = tl.load(row + token).to(tl.float32)
        total = 0.0
        is_first = True
        searching = True
        while searching:
            above, tied, count = 0.0, 0.0, 0
            best, best_id = float("-inf"), 0
            for start in range(0, V, BLOCK):
                o_id = start + tl.arange(0, BLOCK)
                b_x = tl.load(row + o_id, mask=o_id < V, other=float("-inf")).to(tl.float32)
                b_x = tl.where(o_id == exclude_id, float("-inf"), b_x)
                if is_first & (p < 1):
                    total += tl.sum(tl.math.exp2((b_x - top) * (heat * LOG2_E)), 0)
                if tl.max(b_x, 0) >= x:
                    b_above = b_x > x
                    b_weight = tl.math.exp2((b_x - top) * (heat * LOG2_E))
                    above += tl.sum(tl.where(b_above, b_weight, 0.0), 0)
                    count += tl.sum(b_above.to(tl.int32), 0)
                    if WITHIN:
                        tied += tl.sum(tl.where(b_x == x, b_weight, 0.0), 0)
                    b_noisy = tl.where(b_above & (b_x >= floor), b_x * heat + _gumbel(bits, o_id), float("-inf"))
                    value = tl.max(b_noisy, 0)
                    if value > best:
                        best = value
                        best_id = tl.min(tl.where(b_noisy == value, o_id, V - 1), 0)
            inside = (above + tied <= p * total) | (p >= 1)
            searching = (count > 0) & ((count >= most) | (x < floor) | (inside == 0))
            if searching:
                token = best_id
                x = tl.load(row + token).to(tl.float32)
            is_first = False
        tl.store(ids + i_n, token.to(tl.int64))
        tl.store(confidence + i_n, tl.math.exp2(tl.fma(x, LOG2_E, -tl.load(log_total + i_n))))


def sample_token(
    logits: torch.Tensor,
    positions: torch.Tensor | None = None,
    sampling: Sampling | None = None,
    *,
    exclude_id: int,
    exclude_from_denominator: bool = False,
    nucleus: Nucleus = Nucleus.REACHING,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute `reference.sample_token`. Raises ValueError for logits whose rows are not contiguous."""
    if logits.dim() != 2 or logits.stride(1) != 1:
        raise ValueError(f"logits: rows must be contiguous, but strides are {logits.stride()}")
    num_rows, vocab_size = logits.shape
    stretch = min(STRETCH, triton.next_power_of_2(vocab_size))
    num_stretches = triton.cdiv(vocab_size, stretch)
    device = logits.device
    best, maximum, exp_sum, weighted_sum, noisy = torch.empty(
        5, num_rows, num_stretches, dtype=torch.float32, device=device
    ).unbind()
    noisy_id = torch.empty(num_rows, num_stretches, dtype=torch.int32, device=device)
    ids = torch.empty(num_rows, dtype=torch.int64, device=device)
    confidence, entropy, highest, log_total = torch.empty(4, num_rows, dtype=torch.float32, device=device).unbind()
    drawn = sampling or Sampling(*[ids] * 5)  # unread
    positions = ids if positions is None else positions
    width = num_rows // len(drawn.seed)
    common = {"V": vocab_size, "SAMPLED": sampling is not None}
    _stretch_kernel[(num_rows, num_stretches)](
        logits,
        best,
        maximum,
        exp_sum,
        weighted_sum,
        noisy,
        noisy_id,
        positions,
        drawn.temperature,
        drawn.top_k,
        drawn.seed,
        logits.stride(0),
        exclude_id,
        width,
        STRETCH=stretch,
        DROP_EXCLUDED=exclude_from_denominator,
        num_warps=GREEDY_WARPS if sampling is None else SAMPLED_WARPS,
        **common,
    )
    _merge_kernel[(num_rows,)](
        logits,
        best,
        maximum,
        exp_sum,
        weighted_sum,
        noisy,
        noisy_id,
        drawn.top_k,
        ids,
        confidence,
        entropy,
        highest,
        log_total,
        logits.stride(0),
        exclude_id,
        width,
        STRETCH=stretch,
        S=num_stretches,
        BS=triton.next_power_of_2(num_stretches),
        num_warps=4,
        **common,
    )
    if sampling is not None:
        _filter_kernel[(num_rows,)](
            logits,
            ids,
            confidence,
            highest,
            log_total,
            positions,
            drawn.temperature,
            drawn.top_k,
            drawn.top_p,
            drawn.min_p,
            drawn.seed,
            logits.stride(0),
            exclude_id,
            width,
            V=vocab_size,
            BLOCK=min(FILTER_BLOCK, triton.next_power_of_2(vocab_size)),
            WITHIN=nucleus is Nucleus.WITHIN,
            num_warps=FILTER_WARPS,
        )
    return ids, confidence, entropy
