"""The filters in Triton: top-k, top-p and min-p of one row, without sorting it.

They keep tokens above some score. So a drawn token is kept if what is above it is little enough, and if it is not, no
token up to its score is: the next one is the best under noise of those above. Of a row only those groups of
neighbouring tokens are read whose maxima are above, usually very few.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dlm_kernels.sample_token.noise import LOG2_E, best_under_noise, heat_of, noise_bits


@triton.jit
def is_filtered(top_k, top_p, min_p, V: tl.constexpr):
    """Return whether a row is drawn from less than the whole vocabulary."""
    return (top_k > 1) & ((top_k < V) | (top_p < 1) | (min_p > 0))


@triton.jit
def _near_largest(b_max, rank):
    """Return a number that `rank` of `b_max` reach: the largest such that is its sign, exponent and 7 bits alone."""
    bits = b_max.to(tl.int32, bitcast=True)
    # The upper half of integers that are ordered as the floats are.
    b_key = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> 16) + 32768
    key = tl.full((), 0, tl.int32)
    for i in tl.static_range(16):
        trial = key + (32768 >> i)
        key = tl.where(tl.sum((b_key >= trial).to(tl.int32)) >= rank, trial, key)
    found = (key - 32768) << 16
    found = (found ^ ((found >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return tl.where(key < 128, float("-inf"), found)  # below the keys of finite numbers


@triton.jit
def _list_groups(groups, o_g, b_listed):
    """Write those of the groups `o_g` that are `b_listed` to the scratch `groups`; return their number."""
    tl.debug_barrier()  # the previous list has been read
    b_listed = b_listed.to(tl.int32)
    tl.store(groups + tl.cumsum(b_listed, 0) - 1, o_g, mask=b_listed > 0)
    tl.debug_barrier()
    return tl.sum(b_listed)


@triton.jit
def _load_groups(
    row, groups, start, num_listed, exclude_id, V: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr
):
    """Return the ids and logits [GROUPS, GROUP] of the listed groups from `start` on; what is not there is -inf."""
    o_l = start + tl.arange(0, GROUPS)
    is_listed = o_l < num_listed
    o_g = tl.load(groups + o_l, mask=is_listed, other=0)
    o_id = o_g[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    b_x = tl.load(row + o_id, mask=is_listed[:, None] & (o_id < V), other=float("-inf")).to(tl.float32)
    return o_id, tl.where(o_id == exclude_id, float("-inf"), b_x)


@triton.jit
def _is_kept(
    row,
    listed,
    o_g,
    b_max,
    x,
    top,
    power,
    floor,
    most,
    limit,
    exclude_id,
    V: tl.constexpr,
    GROUP: tl.constexpr,
    READ: tl.constexpr,
    WITHIN: tl.constexpr,
):
    """Return whether tokens of logit `x` are in all three sets."""
    is_kept = x >= floor
    if is_kept:
        num_listed = _list_groups(listed, o_g, (b_max >= x) if WITHIN else (b_max > x))
        b_mass = tl.zeros([READ * GROUP // 8], tl.float32)
        b_count = tl.zeros([READ * GROUP // 8], tl.int32)
        for start in range(0, num_listed, READ):
            _, b_x = _load_groups(row, listed, start, num_listed, exclude_id, V, GROUP, READ)
            b_x = tl.reshape(b_x, [READ * GROUP // 8, 8])
            b_counts = (b_x >= x) if WITHIN else (b_x > x)
            b_mass += tl.sum(tl.where(b_counts, tl.math.exp2((b_x - top) * power), 0.0), 1)
            b_count += tl.sum((b_x > x).to(tl.int32), 1)
        count = tl.sum(b_count)
        is_kept = (count == 0) | ((count < most) & (tl.sum(b_mass) <= limit))
    return is_kept


@triton.jit
def _best_above(
    row,
    listed,
    o_g,
    b_max,
    b_reach,
    b_noisy,
    b_drawn,
    above,
    floor,
    bits,
    heat,
    exclude_id,
    taken,
    V: tl.constexpr,
    GROUP: tl.constexpr,
    DRAWN: tl.constexpr,
):
    """Return the best under noise of the tokens higher than `above`, and which it is; -inf if there is none.

    `b_reach` are the best of the groups' stretches, `b_noisy` those of the stretches, and `b_drawn` the logits of the
    latter.
    """
    # What some stretch drew above is a bound: stretches whose best under noise is lower hold no better one.
    bound = tl.max(tl.where((b_drawn > above) & (b_drawn >= floor), b_noisy, float("-inf")))
    num_listed = _list_groups(listed, o_g, (b_max > above) & (b_max >= floor) & (b_reach >= bound))
    best, token = float("-inf"), 0
    for start in range(0, num_listed, DRAWN):
        o_id, b_x = _load_groups(row, listed, start, num_listed, exclude_id, V, GROUP, DRAWN)
        b_x = tl.where((b_x > above) & (b_x >= floor), b_x, float("-inf"))
        if taken is not None:
            b_x = tl.where(o_id == taken, float("-inf"), b_x)
        o_eight = tl.min(tl.reshape(o_id, [DRAWN * GROUP // 8, 8]), 1)
        value, drawn = best_under_noise(row, b_x, o_id, o_eight, bits, heat, above, floor, exclude_id, V, taken)
        if value > best:  # groups are in order: of a tie the lowest id stays
            best, token = value, drawn
    return best, token


@triton.jit
def filter_kernel(
    logits,
    ids,
    second_ids,
    confidence,
    log_total,
    best,
    tempered_sum,
    noisy,
    noisy_id,
    maxima,
    groups,
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
    S: tl.constexpr,
    BS: tl.constexpr,
    G: tl.constexpr,
    BG: tl.constexpr,
    GROUP: tl.constexpr,
    READ: tl.constexpr,
    DRAWN: tl.constexpr,
    WITHIN: tl.constexpr,
    WITH_SECOND: tl.constexpr,
):
    """Draw row i_n again until the token is one that its filters keep; then do the same for the second without it.

    Of its S stretches it reads what the stretch kernel found, of its G groups the maxima. `groups` is scratch. READ
    groups are read at a time, DRAWN where noise is computed.
    """
    i_n = tl.program_id(0).to(tl.int64)
    i_r = i_n // width
    most, p, least = tl.load(top_k + i_r), tl.load(top_p + i_r), tl.load(min_p + i_r)
    if is_filtered(most, p, least, V):
        heat = heat_of(tl.load(temperature + i_r))
        bits = noise_bits(tl.load(seed + i_r), tl.load(positions + i_n))
        row = logits + i_n * stride_row
        listed = groups + i_n * G
        o_g, o_s = tl.arange(0, BG), tl.arange(0, BS)
        b_max = tl.load(maxima + i_n * G + o_g, mask=o_g < G, other=float("-inf")).to(tl.float32)
        b_noisy = tl.load(noisy + i_n * S + o_s, mask=o_s < S, other=float("-inf"))
        b_drawn_id = tl.load(noisy_id + i_n * S + o_s, mask=o_s < S, other=0)
        b_drawn = tl.load(row + b_drawn_id).to(tl.float32)
        b_reach = tl.load(noisy + i_n * S + o_g // (G // S), mask=o_g < G, other=float("-inf"))
        top = tl.max(b_max)
        power = heat * LOG2_E

        floor = top + tl.where(least > 0, tl.log(tl.maximum(least, 1.2e-38)), float("-inf")) / heat
        if most <= G:  # as many groups have a token each that reaches this
            floor = tl.maximum(floor, _near_largest(b_max, most))
        limit = float("inf")
        if p < 1:
            b_best = tl.load(best + i_n * S + o_s, mask=o_s < S, other=float("-inf"))
            b_sum = tl.load(tempered_sum + i_n * S + o_s, mask=o_s < S, other=0.0)
            limit = p * tl.sum(tl.math.exp2((b_best - top) * power) * b_sum)

        token = tl.load(ids + i_n).to(tl.int32)
        x, above = tl.load(row + token).to(tl.float32), float("-inf")
        searching = True
        while searching:
            is_kept = _is_kept(
                row, listed, o_g, b_max, x, top, power, floor, most, limit, exclude_id, V, GROUP, READ, WITHIN
            )
            searching = is_kept == 0
            if searching:
                above = x  # no token up to this is kept
                value, next_token = _best_above(
                    row, listed, o_g, b_max, b_reach, b_noisy, b_drawn, above, floor, bits, heat, exclude_id, None,
                    V, GROUP, DRAWN,
                )  # fmt: skip
                searching = value > float("-inf")
                token = tl.where(searching, next_token, token)
                x = tl.load(row + token).to(tl.float32)
        tl.store(ids + i_n, token.to(tl.int64))
        tl.store(confidence + i_n, tl.math.exp2(tl.fma(x, LOG2_E, -tl.load(log_total + i_n))))

        if WITH_SECOND:
            second, searching = token, True
            b_drawn = tl.where(b_drawn_id == token, float("-inf"), b_drawn)
            while searching:
                value, next_token = _best_above(
                    row, listed, o_g, b_max, b_reach, b_noisy, b_drawn, above, floor, bits, heat, exclude_id, token,
                    V, GROUP, DRAWN,
                )  # fmt: skip
                searching = value > float("-inf")
                if searching:
                    above = tl.load(row + next_token).to(tl.float32)
                    is_kept = _is_kept(
                        row, listed, o_g, b_max, above, top, power, floor, most, limit, exclude_id,
                        V, GROUP, READ, WITHIN,
                    )  # fmt: skip
                    searching = is_kept == 0
                    second = tl.where(is_kept, next_token, second)
            tl.store(second_ids + i_n, second.to(tl.int64))
