"""How rows of a model of ours enter vLLM's forwards."""

from __future__ import annotations

from typing import Any

import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from dlm_serve.decoding import DecodePlan, RequestState
from dlm_serve.vllm import ledger
from dlm_serve.vllm.admission import admitted_warm_up
from dlm_serve.vllm.request import is_admitted, row_options_of, settings_of
from dlm_serve.vllm.sampler import DlmSampler
from dlm_serve.vllm.serving import serving_of
from dlm_serve.vllm.table import RequestTable


class DlmModelState(DefaultModelState):  # type: ignore[misc]  # the base is untyped
    """vLLM's state of a model, with the rows of ours: which of them are causal, and which draft."""

    supports_prompt_embeds = False

    def __init__(self, vllm_config: Any, model: Any, encoder_cache: Any, device: torch.device) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        ledger.put_on(CudaGraphManager, ledger.SINGLE_TOKENS)
        self.serving = serving_of(vllm_config.model_config)
        self.table = RequestTable(
            self.max_num_reqs,
            self.serving.width,
            self.serving.commit,
            self.serving.checkpoint.mask_token_id,
            device,
        )
        self._causal = torch.ones(self.max_num_reqs, dtype=torch.int32, device=device)  # which graphs read
        self._is_plain = True
        """Whether what `_lay_out` wrote last says that all rows are causal, and that none drafts."""

    def custom_sampler(self, sampler: Any) -> tuple[Any, Any]:
        """Return the sampler in the place of vLLM's, and none for drafts of another model."""
        return DlmSampler(sampler, self.serving, self.table), None

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        """Begin a request, new or resumed."""
        params, commit = new_req_data.sampling_params, self.serving.commit
        if not is_admitted(params):
            params = admitted_warm_up(params, self.serving)
        options = row_options_of(params, commit, self.serving.checkpoint.vocab_size)
        state = RequestState(DecodePlan((settings_of(params),)))
        tokens = list(new_req_data.prefill_token_ids)
        self.table.add(req_index, options, tokens, new_req_data.prompt_len, state)

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        """Write the pending tokens of blocks that were begun before a preemption.

        Such a token is the last that a request was resumed with. vLLM writes it as a part of the prompt, and no more
        once a step that encodes it is in flight; but the block begins with it again.
        """
        resumed = self.table.resumed(input_batch.idx_mapping_np)
        if len(resumed):
            rows = async_tensor_h2d(resumed, device=self.device)
            pending = self.table.rows.tokens[input_batch.idx_mapping[rows], 0]
            input_batch.input_ids[input_batch.query_start_loc[rows].long()] = pending.to(input_batch.input_ids.dtype)
        return dict(super().prepare_inputs(input_batch, req_states))

    def prepare_attn(
        self,
        input_batch: Any,
        cudagraph_mode: CUDAGraphMode,
        block_tables: tuple[torch.Tensor, ...],
        slot_mappings: torch.Tensor,
        attn_groups: list[list[Any]],
        kv_cache_config: Any,
        for_capture: bool = False,
        ubatch_idx: int = 0,
    ) -> dict[str, Any]:
        """Return vLLM's attention metadata with a causal flag for each row; tell the draft adapter who drafts."""
        is_padded = cudagraph_mode == CUDAGraphMode.FULL
        num_reqs = input_batch.num_reqs_after_padding if is_padded else input_batch.num_reqs
        num_tokens = input_batch.num_tokens_after_padding if is_padded else input_batch.num_tokens
        max_query_len = int(input_batch.max_query_len or input_batch.num_scheduled_tokens.max())
        # Graphs of wide rows are captured with flags, and replayed with them, whatever the rows are.
        has_graph = is_padded or for_capture
        is_causal = max_query_len == 1 or (not has_graph and self.table.all_causal(input_batch.idx_mapping_np))
        if self.model.draft_adapter is not None:
            # Rows of one token are never drafted: graphs of such rows alone have no adapter.
            self.model.draft_adapter.may_draft.fill_(not (has_graph and max_query_len == 1))
        self.table.begin_step()
        self._lay_out(input_batch)
        query_starts = torch.from_numpy(input_batch.query_start_loc_np[: num_reqs + 1])
        upper_bound = input_batch.seq_lens_cpu_upper_bound
        return dict(
            build_attn_metadata(
                attn_groups=attn_groups,
                num_reqs=num_reqs,
                num_tokens=num_tokens,
                query_start_loc_gpu=input_batch.query_start_loc[: num_reqs + 1],
                query_start_loc_cpu=query_starts,
                max_query_len=max_query_len,
                seq_lens=input_batch.seq_lens,
                max_seq_len=self.max_model_len if for_capture else int(upper_bound[:num_reqs].max()),
                block_tables=block_tables,
                slot_mappings=slot_mappings,
                kv_cache_config=kv_cache_config,
                seq_lens_cpu_upper_bound=upper_bound,
                positions=input_batch.positions,
                is_prefilling=torch.from_numpy(input_batch.is_prefilling_np),
                for_cudagraph_capture=for_capture,
                causal=True if is_causal else self._causal[:num_reqs],
                req_idx=input_batch.idx_mapping_np,
                ubatch_idx=ubatch_idx,
            )
        )

    def _lay_out(self, input_batch: Any) -> None:
        """Write which rows of the batch are causal, and which of its tokens are drafted."""
        num_reqs, num_tokens = input_batch.num_reqs, input_batch.num_tokens
        adapter = self.model.draft_adapter
        is_plain = self.table.all_causal(input_batch.idx_mapping_np)  # all causal, and none drafts
        if is_plain and self._is_plain:
            return
        self._is_plain = is_plain
        if is_plain:
            self._causal.fill_(1)
            if adapter is not None:
                adapter.token_on.zero_()
            return
        spec = self.table.entering(input_batch.idx_mapping[:num_reqs]).spec
        in_prompt = self.table.in_prompt(input_batch.idx_mapping_np)
        is_causal = spec.kept[:, 0] | in_prompt  # a row that sees its whole block keeps no KV
        self._causal.zero_()
        self._causal[:num_reqs] = is_causal.int()
        if adapter is not None:
            drafts = spec.lora_on[:, 0] & ~in_prompt
            lens = torch.diff(input_batch.query_start_loc[: num_reqs + 1])
            adapter.token_on.zero_()
            adapter.token_on[:num_tokens] = drafts.repeat_interleave(lens, output_size=num_tokens)
