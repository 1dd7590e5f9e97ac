"""Logits of block rows, in the model's own precision, with the bias of an output layer that has one."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessor


class BlockLogitsProcessor(LogitsProcessor):  # type: ignore[misc]  # the base is untyped
    """SGLang's, but for the float32 copy of logits that `sample_token` reads as they are.

    For 128 rows of 32 tokens and a vocabulary of 131072 the copy would take 2.1 GB.
    """

    def dtype_of(self, model_dtype: torch.dtype) -> torch.dtype:
        """Return the type of the logits of block rows: the model's, unless SGLang was told to use float32."""
        return torch.float32 if self.use_fp32_lm_head or self.use_fp32_lm_head_output else model_dtype

    def _copy_logits_to_buffer(
        self, logits: torch.Tensor, logits_metadata: Any, use_buffer: bool = True, softcap: float | None = None
    ) -> torch.Tensor:
        if logits_metadata.forward_mode.is_target_verify():
            return logits[:, : self.vocab_size]
        copied: torch.Tensor = super()._copy_logits_to_buffer(logits, logits_metadata, use_buffer, softcap)
        return copied

    def _compute_lm_head(
        self,
        hidden_states: torch.Tensor,
        lm_head: Any,
        embedding_bias: torch.Tensor | None = None,
        *,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        logits: torch.Tensor = super()._compute_lm_head(hidden_states, lm_head, embedding_bias, out=out)
        # SGLang leaves out the bias of an output layer that is not quantised.
        return logits if getattr(lm_head, "bias", None) is None else logits.add_(lm_head.bias)
