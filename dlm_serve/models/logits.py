"""Logits of block rows, in the model's own precision."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessor


class BlockLogitsProcessor(LogitsProcessor):  # type: ignore[misc]  # the base is untyped
    """SGLang's, but for the float32 copy of logits that `token_confidence` reads as they are.

    For 128 rows of 32 tokens and a vocabulary of 131072 the copy would take 2.1 GB.
    """

    def dtype_of(self, model_dtype: torch.dtype) -> torch.dtype:
        """The type of the logits of block rows: the model's, unless SGLang was told to compute them in float32."""
        return torch.float32 if self.use_fp32_lm_head or self.use_fp32_lm_head_output else model_dtype

    def _copy_logits_to_buffer(
        self, logits: torch.Tensor, logits_metadata: Any, use_buffer: bool = True, softcap: float | None = None
    ) -> torch.Tensor:
        if logits_metadata.forward_mode.is_target_verify():
            return logits[:, : self.vocab_size]
        copied: torch.Tensor = super()._copy_logits_to_buffer(logits, logits_metadata, use_buffer, softcap)
        return copied
