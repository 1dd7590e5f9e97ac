"""A low-rank product that counts row by row, in one launch: with few tokens a launch costs more than its work."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

MAX_TILE = 64
"""Tokens of a program, at most."""
OUTPUTS = 32
"""Outputs of a program."""


def add_low_rank(
    hidden: torch.Tensor,
    low_rank: torch.Tensor,
    lora_b: torch.Tensor,
    token_on: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute `reference.add_low_rank`."""
    (num_tokens, num_outputs), rank = hidden.shape, lora_b.shape[1]
    tile = max(16, min(MAX_TILE, triton.next_power_of_2(num_tokens)))
    output = torch.empty(num_tokens, num_outputs, dtype=hidden.dtype, device=hidden.device) if out is None else out
    _add_low_rank_kernel[(triton.cdiv(num_tokens, tile), triton.cdiv(num_outputs, OUTPUTS))](
        hidden,
        low_rank,
        lora_b,
        token_on,
        output,
        num_tokens,
        hidden.stride(0),
        low_rank.stride(0),
        output.stride(0),
        OUT=num_outputs,
        R=rank,
        BT=tile,
        BN=OUTPUTS,
        BR=max(16, triton.next_power_of_2(rank)),
        PRECISION="ieee" if hidden.dtype == torch.float32 else "tf32",
        num_warps=4,
    )
    return output


@triton.jit
def _add_low_rank_kernel(
    hidden,
    low_rank,
    lora_b,
    token_on,
    output,
    num_tokens,
    stride_hidden,
    stride_low_rank,
    stride_output,
    OUT: tl.constexpr,
    R: tl.constexpr,
    BT: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute a tile [BT, BN] of the output, which may be where `hidden` is: each tile of that is read here alone."""
    i_t, i_n = tl.program_id(0), tl.program_id(1)
    o_t, o_n, o_r = i_t * BT + tl.arange(0, BT), i_n * BN + tl.arange(0, BN), tl.arange(0, BR)
    m_t, m_n, m_r = o_t < num_tokens, o_n < OUT, o_r < R
    m_tn = m_t[:, None] & m_n[None, :]
    # What depends on nothing before is read first.
    b_b = tl.load(lora_b + o_n[None, :] * R + o_r[:, None], mask=m_n[None, :] & m_r[:, None], other=0.0)
    m_on = tl.load(token_on + o_t, mask=m_t, other=0).to(tl.int1)
    p_low = low_rank + o_t[:, None].to(tl.int64) * stride_low_rank + o_r[None, :]
    b_low = tl.load(p_low, mask=m_on[:, None] & m_r[None, :], other=0.0)
    p_hidden = hidden + o_t[:, None].to(tl.int64) * stride_hidden + o_n[None, :]
    b_hidden = tl.load(p_hidden, mask=m_tn, other=0.0).to(tl.float32)
    b_sum = tl.dot(b_low, b_b, b_hidden, input_precision=PRECISION)
    p_output = output + o_t[:, None].to(tl.int64) * stride_output + o_n[None, :]
    tl.store(p_output, b_sum.to(output.dtype.element_ty), mask=m_tn)
