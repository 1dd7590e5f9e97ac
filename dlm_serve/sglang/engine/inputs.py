"""Hand to SGLang what our steps have for it: the state between steps, and the input of one block forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode
from sglang.srt.speculative.spec_info import SpecInput, SpecInputType

from dlm_serve.decoding import AttentionSpec
from dlm_serve.decoding.kv_slots import ReadSlots


@dataclass
class StepState(SpecInput):  # type: ignore[misc]  # the base is untyped
    """What SGLang relays from step to step. All else lives on the device, in the worker's row table."""

    bonus_tokens: torch.Tensor  # [B] int64, the pending tokens
    new_seq_lens: torch.Tensor  # [B] int64, the committed lengths
    future_indices: torch.Tensor | None = None
    topk_p: ClassVar[None] = None
    topk_index: ClassVar[None] = None
    hidden_states: ClassVar[None] = None

    def __post_init__(self) -> None:
        super().__init__(SpecInputType.DFLASH_DRAFT)
        self.num_tokens_per_req = 1

    def filter_batch(self, new_indices: torch.Tensor, new_indices_cpu: Any = None, **_: Any) -> None:
        """Keep the requests at `new_indices`."""
        if self.future_indices is not None:
            self.future_indices = self.future_indices[new_indices]
            return
        self.bonus_tokens = self.bonus_tokens[new_indices]
        self.new_seq_lens = self.new_seq_lens[new_indices]

    def merge_batch(self, other: StepState) -> None:
        """Append the requests of `other`."""
        if self.future_indices is not None and other.future_indices is not None:
            self.future_indices = torch.cat([self.future_indices, other.future_indices])
            return
        self.bonus_tokens = torch.cat([self.bonus_tokens, other.bonus_tokens])
        self.new_seq_lens = torch.cat([self.new_seq_lens, other.new_seq_lens])


@dataclass
class BlockInput(SpecInput):  # type: ignore[misc]  # the base is untyped
    """A forward of rows of `width` tokens, which enter it as `spec` says."""

    width: int
    spec: AttentionSpec
    committed: ReadSlots  # the committed KV that each row sees
    capture_hidden_mode: CaptureHiddenMode = CaptureHiddenMode.NULL

    def __post_init__(self) -> None:
        super().__init__(SpecInputType.DFLASH_VERIFY)
        self.num_tokens_per_req = self.num_tokens_for_logprob_per_req = self.width
