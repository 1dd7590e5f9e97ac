"""The noise of `reference.gumbel_noise` in Triton, and the best score under it."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

from dlm_kernels.sample_token.sampling import HOTTEST

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
def noise_bits(seed, position):
    """Return the bits of `reference.noise_bits`."""
    bits = _mix(seed.to(tl.uint32))
    bits = _mix(bits ^ (seed >> 32).to(tl.uint32))
    return _mix(bits ^ position.to(tl.uint32))


@triton.jit
def heat_of(temperature):
    """Return what logits are multiplied by before noise is added."""
    return 1 / tl.minimum(temperature, _HOTTEST)


@triton.jit
def _token_bits(bits, o_id):
    """Return 32 random bits as float32, in [0, 2^32], for the tokens `o_id` in the row of `bits`."""
    return _mix(bits ^ (o_id.to(tl.uint32) * 0x9E3779B1)).to(tl.float32)


@triton.jit
def _log2(x):
    """Return the logarithm to base 2 by the device's instruction; Triton's own is a polynomial of a dozen terms."""
    if INTERPRETED:
        return tl.math.log2(x)
    return libdevice.fast_log2f(x)


@triton.jit
def _gumbel(token_bits):
    """Return `reference.gumbel_noise`.

    A uniform number v gives -log(-log(1 - v)). The inner logarithm is taken by its series where v is small: there the
    noise is large and decides. Where v is near 1 it is cut to what float32 can tell from 1.
    """
    v = tl.fma(token_bits, 1 / 4294967296, 0.5 / 4294967296)
    series = v * (1.0 + v * (0.5 + v * (1 / 3 + v * 0.25)))
    exponential = tl.where(v < 0.03125, series, _log2(tl.maximum(1.0 - v, 2.98e-8)) * -LN_2)
    return _log2(exponential) * -LN_2


@triton.jit
def _gumbel_bound(token_bits):
    """Return what `_gumbel` does not exceed, by one logarithm instead of two: -log(v) exceeds it by little for small v.

    A thousandth is added for what is rounded on the way.
    """
    return tl.fma(_log2(tl.fma(token_bits, 1 / 4294967296, 0.5 / 4294967296)), -LN_2, 0.001)


@triton.jit
def best_under_noise(row, b_x, o_id, o_eight, bits, heat, above, floor, exclude_id, V: tl.constexpr, taken=None):
    """Return the highest of the logits `b_x` times `heat` plus noise, and the lowest of the ids `o_id` that has it.

    Those of `b_x` that do not count, because they are not higher than `above`, lower than `floor`, excluded or `taken`,
    are -inf; `row` points to all of the row. `o_eight` are the first ids of runs of eight, in the order of `o_id`.

    A bound of the noise is cheaper than noise. So noise is computed of the eight tokens among which the bound is
    highest, and of all only where other bounds reach what these have, which is rare.
    """
    b_bits = _token_bits(bits, o_id)
    b_bound = tl.fma(b_x, heat, _gumbel_bound(b_bits))
    b_highest = tl.max(tl.reshape(b_bound, [o_eight.shape[0], 8]), 1)
    first = tl.min(tl.where(b_highest == tl.max(b_highest), o_eight, V - 1))
    o_few = first + tl.arange(0, 8)
    b_few = tl.load(row + o_few, mask=(o_few < V) & (o_few != exclude_id), other=float("-inf")).to(tl.float32)
    b_few = tl.where((b_few > above) & (b_few >= floor), b_few, float("-inf"))
    if taken is not None:
        b_few = tl.where(o_few == taken, float("-inf"), b_few)
    b_few = tl.fma(b_few, heat, _gumbel(_token_bits(bits, o_few)))
    best = tl.max(b_few)
    token = tl.min(tl.where(b_few == best, o_few, V - 1))
    if (tl.sum((b_highest >= best).to(tl.int32)) > 1) & (best > float("-inf")):
        b_noisy = tl.fma(b_x, heat, _gumbel(b_bits))
        best = tl.max(b_noisy)
        token = tl.min(tl.where(b_noisy == best, o_id, V - 1))
    return best, token
