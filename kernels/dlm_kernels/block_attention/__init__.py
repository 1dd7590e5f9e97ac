"""Attention of short rows of new tokens over paged committed KV."""

from dlm_kernels.block_attention.reference import block_attention

__all__ = ["block_attention"]
