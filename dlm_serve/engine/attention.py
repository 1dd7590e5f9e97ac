"""Attention: block rows on our kernel, all other forwards on the backend that SGLang chose."""

from __future__ import annotations

from typing import Any

import torch
from dlm_kernels.block_attention import block_attention
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.attention.hybrid_attn_backend import HybridAttnBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from dlm_serve.decoding import Prefill
from dlm_serve.engine.inputs import BlockRows
from dlm_serve.engine.serving import current
from dlm_serve.kv.slots import read_slots


class BlockAttentionBackend(AttentionBackend):  # type: ignore[misc]  # the base is untyped
    """Attention of block rows, whose masks are in their `BlockInput`."""

    needs_cpu_seq_lens = False

    def __init__(self, model_runner: Any) -> None:
        super().__init__()
        self.req_to_token_pool = model_runner.req_to_token_pool
        self.token_to_kv_pool = model_runner.token_to_kv_pool

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Nothing to plan: the kernel reads everything from the batch."""

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **_: Any,
    ) -> torch.Tensor:
        """Write the rows' keys and values to their slots and attend; `q` [B * width, H * D]."""
        if save_kv_cache:
            self._save(k, v, layer, forward_batch)
        return self._attend(q, k, v, layer, forward_batch.spec_info.rows)

    def _save(self, k: torch.Tensor, v: torch.Tensor, layer: Any, forward_batch: Any) -> None:
        k = k.view(-1, layer.tp_k_head_num, layer.qk_head_dim)
        v = v.view(-1, layer.tp_v_head_num, layer.v_head_dim)
        self.token_to_kv_pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: Any, rows: BlockRows) -> torch.Tensor:
        out = block_attention(
            q.view(-1, rows.width, layer.tp_q_head_num, layer.qk_head_dim),
            k.view(-1, rows.width, layer.tp_k_head_num, layer.qk_head_dim),
            v.view(-1, rows.width, layer.tp_v_head_num, layer.v_head_dim),
            self.token_to_kv_pool.get_key_buffer(layer.layer_id),
            self.token_to_kv_pool.get_value_buffer(layer.layer_id),
            rows.committed.table,
            rows.committed.rows,
            rows.committed.lens,
            rows.causal_len,
            rows.new_len,
            layer.scaling,
        )
        return out.view(q.shape[0], -1)


class BlockCausalPrefill(BlockAttentionBackend):
    """Prefill where a token sees its own block and all before it, on a grid of blocks from position 0.

    Each block of each prompt is a row of block attention behind the prompt's earlier tokens, whose KV is in the pool
    already: from before, or written by this very forward.
    """

    def __init__(self, model_runner: Any, block_size: int) -> None:
        super().__init__(model_runner)
        self._block_size = block_size
        self._window = model_runner.model.attention_window

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Lay out the batch as blocks. Its prompts continue at the edge of a block: pages are blocks, or several."""
        width, device = self._block_size, forward_batch.input_ids.device
        owners, starts, lens, places = [], [], [], []
        spans = zip(forward_batch.extend_prefix_lens_cpu, forward_batch.extend_seq_lens_cpu, strict=True)
        for owner, (first, num_tokens) in enumerate(spans):
            places.append(torch.arange(num_tokens) + len(starts) * width)
            for start in range(first, first + num_tokens, width):
                owners.append(owner)
                starts.append(start)
                lens.append(min(width, first + num_tokens - start))
        slot_rows = forward_batch.req_pool_indices[torch.tensor(owners).to(device)]
        prefix_lens, new_len = torch.tensor(starts).to(device), torch.tensor(lens, dtype=torch.int32).to(device)
        committed = read_slots(self.req_to_token_pool.req_to_token, slot_rows, prefix_lens, self._window)
        self._rows = BlockRows(width, committed, torch.zeros_like(new_len), new_len)
        self._places = torch.cat(places).to(device)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **_: Any,
    ) -> torch.Tensor:
        """Write all keys and values to their slots and attend; `q` [N, H * D]."""
        if save_kv_cache:
            self._save(k, v, layer, forward_batch)
        return self._attend(*(self._in_rows(x) for x in (q, k, v)), layer, self._rows)[self._places]

    def _in_rows(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [N, ...] at its places in the rows [B * width, ...], zeros between."""
        rows = x.new_zeros(len(self._rows.new_len) * self._block_size, *x.shape[1:])
        return rows.index_copy_(0, self._places, x)


class DlmAttentionBackend(HybridAttnBackend):  # type: ignore[misc]  # the base is untyped
    """Sends block rows to `BlockAttentionBackend`, all else to the backend of prefill or of single-token decode."""

    def __init__(self, model_runner: Any, prefill: AttentionBackend, decode: AttentionBackend) -> None:
        super().__init__(model_runner, prefill_backend=prefill, decode_backend=decode)
        self.block_backend = BlockAttentionBackend(model_runner)

    def _select_backend(self, forward_mode: Any) -> AttentionBackend:
        return self.block_backend if forward_mode.is_target_verify() else super()._select_backend(forward_mode)


def add_block_attention(chosen: AttentionBackend, *, model_runner: Any, **_: Any) -> AttentionBackend:
    """After `_build_resolved_backend`: block rows join whatever backend was chosen, and prefill where that cannot."""
    checkpoint = current().checkpoint
    if checkpoint.family.policy.prefill is Prefill.BLOCK_CAUSAL:
        prefill: AttentionBackend = BlockCausalPrefill(model_runner, checkpoint.block_size)
        return DlmAttentionBackend(model_runner, prefill, chosen)
    return DlmAttentionBackend(model_runner, chosen, chosen)
