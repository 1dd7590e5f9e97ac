"""What is said of every row, in Triton: each program reads one stretch of one row, a second kernel merges them."""

from __future__ import annotations

import triton
import triton.language as tl

from dlm_kernels.sample_token.filter import is_filtered
from dlm_kernels.sample_token.noise import LOG2_E, best_under_noise, heat_of, noise_bits


@triton.jit
def stretch_kernel(
    logits,
    best,
    maximum,
    exp_sum,
    weighted_sum,
    noisy,
    noisy_id,
    tempered_sum,
    maxima,
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
    STRETCH: tl.constexpr,
    GROUP: tl.constexpr,
    DROP_EXCLUDED: tl.constexpr,
    SAMPLED: tl.constexpr,
):
    """Find the best score of stretch i_s of row i_n, and the softmax's sums relative to the maximum times log2(e).

    Of a row that is drawn also the best score under noise, of all tokens whether they are kept or not; of one that is
    filtered also the sum at its temperature, relative to the best score, and the maxima of groups of tokens.
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
        most = tl.load(top_k + i_r)
        if most > 1:
            heat = heat_of(tl.load(temperature + i_r))
            bits = noise_bits(tl.load(seed + i_r), tl.load(positions + i_n))
            row, low = logits + i_n * stride_row, float("-inf")
            o_eight = start + tl.arange(0, STRETCH // 8) * 8
            highest, token = best_under_noise(row, b_x, o_id, o_eight, bits, heat, low, low, exclude_id, V)
            tl.store(noisy + i_out, highest)
            tl.store(noisy_id + i_out, token)
            if is_filtered(most, tl.load(top_p + i_r), tl.load(min_p + i_r), V):
                shift = tl.where(value == float("-inf"), 0.0, value)
                tl.store(tempered_sum + i_out, tl.sum(tl.math.exp2((b_x - shift) * (heat * LOG2_E)), 0))
                b_max = tl.max(tl.reshape(b_x, [STRETCH // GROUP, GROUP]), 1)
                o_g = i_out * (STRETCH // GROUP) + tl.arange(0, STRETCH // GROUP)
                tl.store(maxima + o_g, b_max.to(maxima.dtype.element_ty))


@triton.jit
def _load_others(row, i_s, exclude_id, chosen, V: tl.constexpr, STRETCH: tl.constexpr):
    """Return the ids and logits of stretch i_s, -inf where a token is excluded or chosen already."""
    o_id = i_s * STRETCH + tl.arange(0, STRETCH)
    mask = (o_id < V) & (o_id != exclude_id) & (o_id != chosen)
    return o_id, tl.load(row + o_id, mask=mask, other=float("-inf")).to(tl.float32)


@triton.jit
def _best_stretch_but(i_best, o_s, b_value, S: tl.constexpr):
    """Return the highest of the stretches' `b_value` but that of stretch i_best, and the first stretch that has it."""
    b_value = tl.where(o_s == i_best, float("-inf"), b_value)
    value = tl.max(b_value, 0)
    return value, tl.min(tl.where((b_value == value) & (o_s != i_best), o_s, S - 1), 0)


@triton.jit
def merge_kernel(
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
    top_p,
    min_p,
    seed,
    ids,
    second_ids,
    confidence,
    entropy,
    log_total,
    stride_row,
    exclude_id,
    width,
    V: tl.constexpr,
    STRETCH: tl.constexpr,
    S: tl.constexpr,
    BS: tl.constexpr,
    SAMPLED: tl.constexpr,
    WITH_SECOND: tl.constexpr,
):
    """Merge row i_n from its S stretches. The best of a row that is not drawn is read again, in one stretch.

    The second best is either in the same stretch as the best, which is read again, or the best of another one. Of a row
    that is filtered, `filter_kernel` finds it.
    """
    i_n = tl.program_id(0).to(tl.int64)
    o_s = tl.arange(0, BS)
    mask = o_s < S
    o_in = i_n * S + o_s
    row = logits + i_n * stride_row
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
        if WITH_SECOND:
            i_r = i_n // width
            if not is_filtered(tl.load(top_k + i_r), tl.load(top_p + i_r), tl.load(min_p + i_r), V):
                heat, low = heat_of(tl.load(temperature + i_r)), float("-inf")
                bits = noise_bits(tl.load(seed + i_r), tl.load(positions + i_n))
                o_id, b_x = _load_others(row, i_best, exclude_id, chosen, V, STRETCH)
                o_eight = i_best * STRETCH + tl.arange(0, STRETCH // 8) * 8
                value, second = best_under_noise(row, b_x, o_id, o_eight, bits, heat, low, low, exclude_id, V, chosen)
                other, i_other = _best_stretch_but(i_best, o_s, b_noisy, S)
                if (other > value) | ((other == value) & (i_other < i_best)):
                    value, second = other, tl.load(noisy_id + i_n * S + i_other)
                tl.store(second_ids + i_n, tl.where(value > float("-inf"), second, chosen).to(tl.int64))
    else:
        i_best = tl.min(tl.where((b_best == value) & mask, o_s, S - 1), 0)
        o_id = i_best * STRETCH + tl.arange(0, STRETCH)
        b_x = tl.load(row + o_id, mask=o_id < V, other=float("-inf")).to(tl.float32)
        chosen = tl.min(tl.where((b_x == value) & (o_id != exclude_id), o_id, V - 1), 0)
        if WITH_SECOND:
            o_id, b_x = _load_others(row, i_best, exclude_id, chosen, V, STRETCH)
            value = tl.max(b_x, 0)
            other, i_other = _best_stretch_but(i_best, o_s, b_best, S)
            if (other > value) | ((other == value) & (i_other < i_best)):
                value = other
                o_id, b_x = _load_others(row, i_other, exclude_id, chosen, V, STRETCH)
            second = tl.min(tl.where(b_x == value, o_id, V - 1), 0)
            tl.store(second_ids + i_n, tl.where(value > float("-inf"), second, chosen).to(tl.int64))

    b_shift = tl.maximum(b_max - top, -1e4)
    b_weight = tl.math.exp2(b_shift)
    b_sum = tl.load(exp_sum + o_in, mask=mask, other=0.0)
    b_weighted = tl.load(weighted_sum + o_in, mask=mask, other=0.0)
    total = tl.sum(b_weight * b_sum, 0)
    weighted = tl.sum(b_weight * (b_weighted + b_shift * b_sum), 0)
    x = tl.load(row + chosen).to(tl.float32)
    tl.store(ids + i_n, chosen.to(tl.int64))
    tl.store(confidence + i_n, tl.math.exp2(tl.fma(x, LOG2_E, -top)) / total)
    tl.store(entropy + i_n, (tl.math.log2(total) - weighted / total) / LOG2_E)
    if SAMPLED:
        tl.store(log_total + i_n, top + tl.math.log2(total))
