"""Define how the tokens of a training or decoding forward see each other, once for every backend.

A forward reads noisy blocks and clean documents side by side. Clean tokens are causal, as in
autoregression. A noisy block sees itself in both directions, and of the clean tokens those before
its start: what a block sees when it is denoised over committed KV (block diffusion over
`[x_t | x_0]`, arXiv 2503.09573 section 3; clean part token-causal as in Nemotron-Labs-Diffusion).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

CLEAN = -1
"""The block number of tokens outside any block."""

_compiled_create_block_mask = torch.compile(create_block_mask, dynamic=False)
"""Attention that never materialises the whole mask."""

Mask = torch.Tensor | BlockMask
"""Who sees whom: a dense bool mask [B, 1, T, T], or the tiles that FlexAttention must not skip."""


@dataclass(frozen=True)
class Layout:
    """Where each of B x T tokens is; padding is a document of its own."""

    document: torch.Tensor  # [B, T] int32
    position: torch.Tensor  # [B, T] int32, inside the document
    block: torch.Tensor  # [B, T] int32, CLEAN or the id of a noisy block, unique in its row
    horizon: torch.Tensor  # [B, T] int32, clean tokens before this position are seen

    def dense_mask(self) -> torch.Tensor:
        """Return the whole mask, for any device; memory is quadratic."""
        rows, width = self.document.shape
        index = torch.arange(max(rows, width), device=self.document.device)
        return _rule(self)(index[:rows, None, None], index, index[None, :width, None], index[None, None, :width])[
            :, None
        ]

    def block_mask(self) -> BlockMask:
        """Return the mask for FlexAttention on a GPU, for compiled code."""
        rows, width = self.document.shape
        device = self.document.device
        create = _compiled_create_block_mask if device.type == "cuda" else create_block_mask
        mask: BlockMask = create(_rule(self), rows, None, width, width, device=device)
        return mask


def _rule(layout: Layout) -> Callable[..., torch.Tensor]:
    """Return whether token `query` of row `row` sees token `key`, in FlexAttention's form; the indices broadcast."""
    # Plain tensors in the closure: the compiler lifts them into the kernel.
    document, position, block, horizon = layout.document, layout.position, layout.block, layout.horizon

    def sees(row: torch.Tensor, _: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        clean = block[row, key] == CLEAN
        before = position[row, key] < horizon[row, query]
        same_block = block[row, key] == block[row, query]
        return ((clean & before) | (~clean & same_block)) & (document[row, key] == document[row, query])

    return sees


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Mask) -> torch.Tensor:
    """Return the attention of q [B, H, T, D] over k and v [B, G, T, D]; each of the G heads serves H / G queries."""
    if isinstance(mask, BlockMask):
        attended: torch.Tensor = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
        return attended
    group = q.shape[1] // k.shape[1]
    return functional.scaled_dot_product_attention(
        q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), mask
    )
