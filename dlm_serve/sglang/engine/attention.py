"""Attend: block rows on our kernel, prompts as their family encodes them, all else on the backend SGLang chose."""

from __future__ import annotations

from typing import Any

import torch
from dlm_kernels.block_attention import block_attention
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.attention.hybrid_attn_backend import HybridAttnBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from dlm_serve.decoding import Commit
from dlm_serve.sglang.engine.prompt_attention import SpanBackend
from dlm_serve.sglang.protocols import AttentionLayerLike, ForwardBatchLike, ModelRunnerLike


class BlockAttentionBackend(AttentionBackend):  # type: ignore[misc]  # the base is untyped
    """Attention of block rows, whose masks are in their `BlockInput`."""

    needs_cpu_seq_lens = False

    def __init__(self, model_runner: ModelRunnerLike) -> None:
        super().__init__()
        self.req_to_token_pool = model_runner.req_to_token_pool
        self.token_to_kv_pool = model_runner.token_to_kv_pool

    def init_forward_metadata(self, forward_batch: ForwardBatchLike) -> None:
        """Plan nothing: the kernel reads everything from the batch."""

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: AttentionLayerLike,
        forward_batch: ForwardBatchLike,
        save_kv_cache: bool = True,
        **_: Any,
    ) -> torch.Tensor:
        """Write the rows' keys and values to their slots and attend; `q` [B * width, H * D]."""
        block = forward_batch.spec_info
        rows = (forward_batch.batch_size, block.width)
        k = k.view(*rows, layer.tp_k_head_num, layer.qk_head_dim)
        v = v.view(*rows, layer.tp_v_head_num, layer.v_head_dim)
        if save_kv_cache:
            location = KVWriteLoc(forward_batch.out_cache_loc, None)
            self.token_to_kv_pool.set_kv_buffer(layer, location, k.flatten(0, 1), v.flatten(0, 1))
        out = block_attention(
            q.view(*rows, layer.tp_q_head_num, layer.qk_head_dim),
            k,
            v,
            self.token_to_kv_pool.get_key_buffer(layer.layer_id),
            self.token_to_kv_pool.get_value_buffer(layer.layer_id),
            block.committed.table,
            block.committed.rows,
            block.committed.lens,
            block.spec.visible,
            layer.scaling,
        )
        return out.view(q.shape[0], -1)


class DlmAttentionBackend(HybridAttnBackend):  # type: ignore[misc]  # the base is untyped
    """Sends block rows to `BlockAttentionBackend`, single-token decode and causal prefill to SGLang's backend."""

    def __init__(self, model_runner: ModelRunnerLike, chosen: AttentionBackend, commit: Commit) -> None:
        self.span_backend = None if commit.prompt_mask.is_causal else SpanBackend(model_runner)
        super().__init__(model_runner, prefill_backend=self.span_backend or chosen, decode_backend=chosen)
        self.block_backend = BlockAttentionBackend(model_runner)
        # SGLang would wait for the device in each step to learn them.
        self.needs_cpu_seq_lens &= commit.decodes_tokens

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Prepare the backend that SGLang's decode graphs run; the base would prepare that of prompts as well."""
        self.decode_backend.init_cuda_graph_state(max_bs, max_num_tokens)

    def _select_backend(self, forward_mode: Any) -> AttentionBackend:
        return self.block_backend if forward_mode.is_target_verify() else super()._select_backend(forward_mode)
