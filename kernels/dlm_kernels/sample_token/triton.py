"""Token choice in Triton: every row is read once in stretches, these are merged, and drawn tokens are filtered.

Nothing is sorted, and nothing is copied to float32 in memory. Shapes alone decide the grids, so that a graph can
capture them; whether a row is drawn, and from what, is read from tensors.
"""

from __future__ import annotations

import torch
import triton

from dlm_kernels.sample_token.filter import filter_kernel
from dlm_kernels.sample_token.sampling import Nucleus, Sampling
from dlm_kernels.sample_token.stretches import merge_kernel, stretch_kernel

STRETCH = 4096
GROUP = 64
"""Neighbouring tokens of which a filter reads all or none."""
READ_GROUPS, DRAWN_GROUPS = 128, 64
GREEDY_WARPS, SAMPLED_WARPS, FILTER_WARPS = 2, 4, 8


def sample_token(
    logits: torch.Tensor,
    positions: torch.Tensor | None = None,
    sampling: Sampling | None = None,
    *,
    exclude_id: int,
    exclude_from_denominator: bool = False,
    nucleus: Nucleus = Nucleus.REACHING,
    with_second: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute `reference.sample_token`. Raises ValueError for logits whose rows are not contiguous."""
    if logits.dim() != 2 or logits.stride(1) != 1:
        raise ValueError(f"logits: rows must be contiguous, but strides are {logits.stride()}")
    num_rows, vocab_size = logits.shape
    stretch = max(8, min(STRETCH, triton.next_power_of_2(vocab_size)))
    group = min(GROUP, stretch)
    num_stretches = triton.cdiv(vocab_size, stretch)
    num_groups = num_stretches * stretch // group
    device, is_sampled = logits.device, sampling is not None
    best, maximum, exp_sum, weighted_sum, noisy, tempered_sum = torch.empty(
        6, num_rows, num_stretches, dtype=torch.float32, device=device
    ).unbind()
    noisy_id = torch.empty(num_rows, num_stretches, dtype=torch.int32, device=device)
    maxima = torch.empty(num_rows if is_sampled else 0, num_groups, dtype=logits.dtype, device=device)
    groups = torch.empty_like(maxima, dtype=torch.int32)
    ids = torch.empty(num_rows, dtype=torch.int64, device=device)
    second_ids = torch.empty_like(ids) if with_second else ids
    confidence, entropy, log_total = torch.empty(3, num_rows, dtype=torch.float32, device=device).unbind()
    drawn = sampling or Sampling(*[ids] * 5)  # unread
    positions = ids if positions is None else positions
    row = (logits.stride(0), exclude_id, num_rows // len(drawn.seed))
    how = (drawn.temperature, drawn.top_k, drawn.top_p, drawn.min_p, drawn.seed)
    sizes = {"V": vocab_size, "STRETCH": stretch, "SAMPLED": is_sampled}
    parts = {"S": num_stretches, "BS": triton.next_power_of_2(num_stretches)}
    stretch_kernel[(num_rows, num_stretches)](
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
        *how,
        *row,
        GROUP=group,
        DROP_EXCLUDED=exclude_from_denominator,
        num_warps=SAMPLED_WARPS if is_sampled else GREEDY_WARPS,
        **sizes,
    )
    merge_kernel[(num_rows,)](
        logits,
        best,
        maximum,
        exp_sum,
        weighted_sum,
        noisy,
        noisy_id,
        positions,
        *how,
        ids,
        second_ids,
        confidence,
        entropy,
        log_total,
        *row,
        WITH_SECOND=with_second,
        num_warps=4,
        **sizes,
        **parts,
    )
    if is_sampled:
        all_groups = triton.next_power_of_2(num_groups)
        filter_kernel[(num_rows,)](
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
            *how,
            *row,
            V=vocab_size,
            G=num_groups,
            BG=all_groups,
            GROUP=group,
            READ=min(READ_GROUPS, all_groups),
            DRAWN=min(DRAWN_GROUPS, all_groups),
            WITHIN=nucleus is Nucleus.WITHIN,
            WITH_SECOND=with_second,
            num_warps=FILTER_WARPS,
            **parts,
        )
    return ids, confidence, entropy, second_ids
