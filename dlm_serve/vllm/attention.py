"""The attention of rows, of which each is causal or not: Triton's kernels, and FlashAttention where all are causal."""

from __future__ import annotations

from typing import Any, ClassVar

from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.composite import CompositeAttentionRouting, create_composite_attention_backend
from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend

_BY_ROW, _ALL_CAUSAL = 0, 1
"""Places of the two backends in a composite one."""


class Routing(CompositeAttentionRouting):  # type: ignore[misc]  # the base is untyped
    """FlashAttention 3 takes no flags by row; where all rows are causal it is the faster one."""

    capture_variant: ClassVar[int] = _BY_ROW

    def __init__(self, layer_names: list[str], vllm_config: Any) -> None:
        pass

    def select(self, metadata: Any) -> int:
        """Return which backend computes a batch, of which the model's state says whether all rows are causal."""
        return _ALL_CAUSAL if metadata.causal is True else _BY_ROW

    @staticmethod
    def get_cudagraph_support(vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        """Set no bound of its own."""
        return AttentionCGSupport.ALWAYS

    @staticmethod
    def variant_uses_mm_prefix(variant: int) -> bool:
        """Return that neither must mask images."""
        return False


_Composite: Any = create_composite_attention_backend(
    TritonAttentionBackend,
    FlashAttentionBackend,
    name="TritonOrFlashAttention",
    backend_name="CUSTOM",
    module=__name__,
    routing_policy=Routing,
)


class _Builder(_Composite.get_builder_cls()):  # type: ignore[misc]  # made at run time
    """Graphs are captured for both: of rows of one token, which are all causal, and of wide ones."""

    def build_for_cudagraph_capture(self, common_attn_metadata: Any) -> Any:
        """Return the metadata under which a graph is captured, of the backend that replays will select."""
        variant = self.routing.select(common_attn_metadata)
        metadata = self._builders[variant].build_for_cudagraph_capture(common_attn_metadata)
        metadata._attention_backend_variant = variant
        return metadata


class DlmAttentionBackend(_Composite):  # type: ignore[misc]  # made at run time
    """What vLLM knows by the name CUSTOM in processes that serve a model of ours."""

    @classmethod
    def supports_non_causal(cls) -> bool:
        """Return that rows may see all of themselves."""
        return True

    @staticmethod
    def get_builder_cls() -> type[Any]:
        """Return what makes the metadata of a batch."""
        return _Builder
