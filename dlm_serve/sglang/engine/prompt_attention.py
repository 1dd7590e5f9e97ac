"""Encode prompts whose tokens see more than what is before them: the whole prompt, or their own block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import triton
from dlm_kernels.block_attention import Visible, block_attention
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from torch.nn.functional import scaled_dot_product_attention

from dlm_serve.decoding import Commit
from dlm_serve.decoding.kv_slots import ReadSlots, read_slots
from dlm_serve.sglang.engine.requests import state_of
from dlm_serve.sglang.protocols import AttentionLayerLike, BatchLike, ForwardBatchLike, ModelRunnerLike

MAX_ROW = 64
"""Tokens of the longest first span that is a row. Longer ones are whole prompts."""


@dataclass(frozen=True)
class Span:
    """Tokens of one EXTEND that see each other and all tokens of their request before them."""

    request: int
    """Its place in the batch."""
    first_token: int
    """In the EXTEND's tokens."""
    start: int
    """Its first position."""
    length: int


def spans_of(batch: BatchLike, commit: Commit, block_size: int) -> list[Span]:
    """Return the spans of SGLang's EXTEND `batch`, in the order of its tokens."""
    found, num_before = [], 0
    for i, req in enumerate(batch.reqs):
        num_prompt, num_tokens = len(req.origin_input_ids), len(req.origin_input_ids) + len(req.output_ids)
        ends = commit.span_ends(num_prompt, num_tokens, block_size, state_of(req).current.block_length)
        first, last = batch.prefix_lens[i], batch.prefix_lens[i] + batch.extend_lens[i]
        for start, end in pairwise([0, *ends]):
            start, end = max(start, first), min(end, last)
            if start < end:
                found.append(Span(i, num_before + start - first, start, end - start))
        num_before += batch.extend_lens[i]
    return found


@dataclass(frozen=True)
class _Rows:
    """Spans as rows for `block_attention`, R of at most W tokens."""

    tokens: torch.Tensor  # [R, W] int64, which of the EXTEND's tokens; padding is token 0
    of_rows: torch.Tensor  # [T] int64, the real tokens among all R * W
    of_extend: torch.Tensor  # [T] int64, the same among the EXTEND's
    requests: torch.Tensor  # [R] int64
    starts: torch.Tensor  # [R] int64
    visible: Visible  # all tokens of a span see each other

    @classmethod
    def of(cls, spans: Sequence[Span], device: Any) -> _Rows:
        lengths = torch.tensor([span.length for span in spans])
        # A power of two: each width is a kernel of its own, compiled when it is first met.
        columns = torch.arange(triton.next_power_of_2(int(lengths.max())))
        real = columns < lengths[:, None]
        tokens = torch.tensor([span.first_token for span in spans])[:, None] + columns
        tokens = torch.where(real, tokens, 0)
        return cls(
            tokens.to(device),
            real.flatten().nonzero().squeeze(1).to(device),
            tokens[real].to(device),
            torch.tensor([span.request for span in spans]).to(device),
            torch.tensor([span.start for span in spans]).to(device),
            Visible(*(tensor.to(device) for tensor in Visible.of(torch.zeros_like(lengths), lengths, len(columns)))),
        )


class SpanBackend(AttentionBackend):  # type: ignore[misc]  # the base is untyped
    """Attention of an EXTEND in spans: a long one at the start of its request is dense, the others are rows."""

    needs_cpu_seq_lens = False

    def __init__(self, model_runner: ModelRunnerLike) -> None:
        super().__init__()
        self.req_to_token_pool = model_runner.req_to_token_pool
        self.token_to_kv_pool = model_runner.token_to_kv_pool
        self._device = model_runner.device
        self._window = model_runner.model.attention_window
        self._dense: list[slice] = []
        self._rows: _Rows | None = None
        self._committed: ReadSlots  # of the rows, looked up once for all layers

    @contextmanager
    def cut_into(self, spans: Sequence[Span]) -> Iterator[None]:
        """Let an EXTEND's tokens lie in `spans` within this context."""
        dense = [s for s in spans if s.start == 0 and s.length > MAX_ROW]
        rest = [s for s in spans if s.start > 0 or s.length <= MAX_ROW]
        self._dense = [slice(s.first_token, s.first_token + s.length) for s in dense]
        self._rows = _Rows.of(rest, self._device) if rest else None
        try:
            yield
        finally:
            self._dense, self._rows = [], None

    def init_forward_metadata(self, forward_batch: ForwardBatchLike) -> None:
        """Look up where the KV lies that the rows see."""
        rows, slot_table = self._rows, self.req_to_token_pool.req_to_token
        if rows is not None:
            requests = forward_batch.req_pool_indices[rows.requests]
            self._committed = read_slots(slot_table, requests, rows.starts, self._window)

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
        """Write all keys and values of the layer to their slots, then attend; `q` [T, H * D]."""
        q = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        k = k.view(-1, layer.tp_k_head_num, layer.qk_head_dim)
        v = v.view(-1, layer.tp_v_head_num, layer.v_head_dim)
        if save_kv_cache:
            self.token_to_kv_pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v)
        out = torch.zeros_like(q)
        for tokens in self._dense:
            queries, keys, values = (tensor[tokens].movedim(0, 1)[None] for tensor in (q, k, v))
            attended = scaled_dot_product_attention(queries, keys, values, scale=layer.scaling, enable_gqa=True)
            out[tokens] = attended[0].movedim(0, 1)
        rows = self._rows
        if rows is not None:
            attended = block_attention(
                q[rows.tokens],
                k[rows.tokens],
                v[rows.tokens],
                self.token_to_kv_pool.get_key_buffer(layer.layer_id),
                self.token_to_kv_pool.get_value_buffer(layer.layer_id),
                self._committed.table,
                self._committed.rows,
                self._committed.lens,
                rows.visible,
                layer.scaling,
            )
            out.index_copy_(0, rows.of_extend, attended.flatten(0, 1)[rows.of_rows])
        return out.view(q.shape[0], -1)
