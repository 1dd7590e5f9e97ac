"""Describe the objects of SGLang's that this package is handed: the attributes it reads and writes, no others.

SGLang ships no types. A name that SGLang renames is then missing from one place, and a name that is
misspelt here is found by the type checker.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch


class TokenizerLike(Protocol):
    """A Hugging Face tokenizer, as SGLang has extended it."""

    eos_token_id: int | None
    additional_stop_token_ids: set[int] | None

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, with U+FFFD for bytes that are no character."""


class SamplingParamsLike(Protocol):
    """`sampling_params.SamplingParams` after `normalize`, of one request in the main process."""

    max_new_tokens: int | None
    top_k: int
    """1 is greedy, `1 << 30` the whole vocabulary."""
    n: int
    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float
    min_new_tokens: int
    logit_bias: dict[str, float] | None
    ignore_eos: bool
    stop_token_ids: set[int] | None
    sampling_seed: int | None
    custom_params: dict[str, Any] | None


class AdmittedParamsLike(Protocol):
    """The same in the scheduler's process: admission has filled in what was missing."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    ignore_eos: bool
    stop_token_ids: set[int] | None
    sampling_seed: int
    custom_params: dict[str, Any]


class GrammarLike(Protocol):
    """`base_grammar_backend.BaseGrammarObject`: where an answer stands in a grammar."""

    def accept_token(self, token: int) -> None:
        """Go on behind a token. Raises ValueError if it is not allowed."""

    def rollback(self, k: int) -> None:
        """Go back by `k` tokens."""

    def is_terminated(self) -> bool:
        """Return whether nothing more may follow."""

    def fill_vocab_mask(self, vocab_mask: torch.Tensor, idx: int) -> None:
        """Fill a row of a mask with what may follow."""


class ReqLike(Protocol):
    """`schedule_batch.Req`: a request in the scheduler's process."""

    rid: str
    origin_input_ids: Sequence[int]
    """The prompt."""
    output_ids: array[int]
    """The answer so far, with tokens behind its stop."""
    extend_end: int
    """Tokens of prompt and answer that have been through an EXTEND call, or are in the one that runs."""
    sampling_params: AdmittedParamsLike
    grammar: Any
    return_logprob: bool
    tokenizer: TokenizerLike | None
    eos_token_ids: set[int] | None
    stream: bool
    """Whether its tokens are sent as they come."""
    skip_radix_cache_insert: bool
    """Whether its KV stays out of the prefix cache."""
    send_token_offset: int
    """Tokens of the answer that were streamed."""
    to_finish: Any
    """Why it will end before its next step; None if it will not."""
    finished_reason: Any
    finished_len: int | None
    """Length of the finished answer; None where that is all of it."""

    @property
    def output_ids_through_stop(self) -> array[int]:
        """Return the answer up to its stop."""

    def finished(self) -> bool:
        """Return whether it has a reason to be finished."""


class SamplingInfoLike(Protocol):
    """`sampling_batch_info.SamplingBatchInfo`: how the requests of a batch sample, B rows."""

    temperatures: torch.Tensor  # [B, 1] float32
    top_ks: torch.Tensor  # [B] int32
    top_ps: torch.Tensor  # [B] float32
    min_ps: torch.Tensor  # [B] float32
    sampling_seed: torch.Tensor  # [B] int64
    is_all_greedy: bool
    has_custom_logit_processor: bool


class BatchLike(Protocol):
    """`schedule_batch.ScheduleBatch`: the B requests of one step."""

    reqs: list[ReqLike]
    forward_mode: ForwardModeLike
    req_pool_indices: torch.Tensor  # [B] int64, rows of the slot table
    seq_lens: torch.Tensor  # [B] int64, on the device
    seq_lens_cpu: torch.Tensor | None  # [B] int64, on the host
    prefix_lens: list[int]
    """Of an EXTEND: tokens of each request before it."""
    extend_lens: list[int]
    """Of an EXTEND: tokens of each request in it."""
    sampling_info: SamplingInfoLike
    return_logprob: bool
    top_logprobs_nums: list[int]
    token_ids_logprobs: list[list[int] | None]


class ForwardModeLike(Protocol):
    """`forward_batch_info.ForwardMode`."""

    def is_extend(self) -> bool:
        """Return whether prompts are encoded."""

    def is_target_verify(self) -> bool:
        """Return whether block rows run."""


class ForwardBatchLike(Protocol):
    """`forward_batch_info.ForwardBatch`: the input of one forward over B rows."""

    batch_size: int
    forward_mode: ForwardModeLike
    spec_info: Any
    out_cache_loc: torch.Tensor  # [tokens] int64, KV slots to write
    req_pool_indices: torch.Tensor  # [B] int64
    input_ids: torch.Tensor  # [tokens] int64
    positions: torch.Tensor  # [tokens] int64


class AttentionLayerLike(Protocol):
    """`radix_attention.RadixAttention`: the shape of one layer's heads on this rank."""

    layer_id: int
    tp_q_head_num: int
    tp_k_head_num: int
    tp_v_head_num: int
    qk_head_dim: int
    v_head_dim: int
    scaling: float


class SlotTableLike(Protocol):
    """`memory_pool.ReqToTokenPool`."""

    size: int
    req_to_token: torch.Tensor  # [rows, positions] int32, the KV slot of each position


class KVPoolLike(Protocol):
    """`memory_pool.MHATokenToKVPool`."""

    size: int
    """Slots, without the one that no request owns."""

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        """Return the keys of a layer, [slots, heads, head_dim]."""

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        """Return the values of a layer, [slots, heads, head_dim]."""

    def set_kv_buffer(self, layer: Any, location: Any, k: torch.Tensor, v: torch.Tensor) -> None:
        """Write the keys and values of a layer to their slots."""


class ModelRunnerLike(Protocol):
    """`model_runner.ModelRunner`: the loaded model with its pools and its attention."""

    model: Any
    model_config: Any
    device: str
    dtype: torch.dtype
    sampler: Any
    spec_algorithm: Any
    attn_backend: Any
    decode_attn_backend: Any
    req_to_token_pool: SlotTableLike
    token_to_kv_pool: KVPoolLike
    kv_index_translator: Any
    decode_cuda_graph_capture_bs: list[int] | None
    """Batch sizes of SGLang's own graphs of its decode; None or empty where it captures none."""
    shared_read_done_event: Any
    """The event after which the scheduler may write to the slot table; None waits for the whole forward."""


class WorkerLike(Protocol):
    """`tp_worker.TpModelWorker`: runs the model."""

    device: str
    model_runner: ModelRunnerLike

    def forward_batch_generation(self, batch: Any, forward_batch: Any = None, is_verify: bool = False) -> Any:
        """Run a batch, and sample unless `is_verify`; return a GenerationBatchResult."""


class ServerArgsLike(Protocol):
    """`server_args.ServerArgs` before it is resolved: the flags of a server."""

    host: str
    port: int
    node_rank: int
    model_path: str
    served_model_name: str | None
    revision: str | None
    tokenizer_path: str | None
    skip_tokenizer_init: bool
    reasoning_parser: str | None
    load_format: str
    device: str | None
    tp_size: int
    dp_size: int
    dtype: str
    quantization: str | None
    dllm_algorithm_config: str | None
    """The server file."""
    json_model_override_args: str | None
    preferred_sampling_params: dict[str, Any] | str | None
    """As JSON where an engine is made in Python."""
    grammar_backend: str | None
    speculative_algorithm: str | None
    speculative_num_draft_tokens: int | None
    speculative_num_steps: int | None
    speculative_eagle_topk: int | None
    enable_mixed_chunk: bool
    disable_radix_cache: bool
    disable_prefill_cuda_graph: bool
    chunked_prefill_size: int | None
    page_size: int | None
    prefill_decode_interval: int | None
    prefill_decode_interval_min_bs: int
    mem_fraction_static: float | None
    max_total_tokens: int | None
    max_running_requests: int | None
    cuda_graph_config: Any
    cuda_graph_backend_prefill: str | None
    cuda_graph_max_bs_decode: int | None
    sleep_on_idle: bool
    enable_trace: bool


class GenerateRequestLike(Protocol):
    """`io_struct.GenerateReqInput`: a request in the main process, one of a batch."""

    text: str | None
    sampling_params: Mapping[str, Any]
    """As the client sent them."""


class TokenizedRequestLike(Protocol):
    """`io_struct.TokenizedGenerateReqInput`: what is sent to the scheduler's process."""

    input_ids: Sequence[int]
    sampling_params: SamplingParamsLike
