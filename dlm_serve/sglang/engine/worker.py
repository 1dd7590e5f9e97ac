"""The decode worker: decode modes over one KV cache, inside SGLang's speculative-worker seam.

Between steps SGLang counts C tokens of each request, all but its newest. A step runs one row per request, which starts
at position C + 1 - `Rows.num_emitted`: with the newest token where commits are causal, elsewhere with all that is
emitted and has no KV yet. A step may emit nothing for a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from sglang.srt.speculative.base_spec_worker import BaseSpecWorker
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from dlm_serve.decoding import Choice, Rows, Snapshot
from dlm_serve.options.fields import MAX_BUDGET
from dlm_serve.routing.costs import CostModel, LearnedCosts, MeasuredCosts
from dlm_serve.routing.pinned import PinnedPolicy
from dlm_serve.routing.prefills import PrefillInterval, PrefillShape
from dlm_serve.routing.router import Decision
from dlm_serve.sglang.engine.attention import DlmAttentionBackend
from dlm_serve.sglang.engine.block_step import BlockStep, Step
from dlm_serve.sglang.engine.counting import METER, count_step_time
from dlm_serve.sglang.engine.decode_forward import DecodeForward
from dlm_serve.sglang.engine.decode_step import DecodeStep
from dlm_serve.sglang.engine.draft_windows import DraftWindows
from dlm_serve.sglang.engine.extend_step import ExtendStep
from dlm_serve.sglang.engine.logit_step import Barrier, LogitStep
from dlm_serve.sglang.engine.planned_step import RowGroup, StepPlanner
from dlm_serve.sglang.engine.prefill_graphs import set_prefill_graphs
from dlm_serve.sglang.engine.requests import state_of
from dlm_serve.sglang.engine.routing import RoutingLog, make_router, running
from dlm_serve.sglang.engine.sampler import DlmSampler
from dlm_serve.sglang.engine.step_timer import EventTimer, HostTimer, StepTimer
from dlm_serve.sglang.protocols import BatchLike, ReqLike, ServerArgsLike, WorkerLike
from dlm_serve.sglang.serving import load_serving

Publish = Callable[[torch.Tensor], None]


class DlmWorker(BaseSpecWorker):  # type: ignore[misc]  # the base is untyped
    """Runs every decode step of a diffusion language model.

    The prefill is SGLang's own, with the attention of `prompt_attention` where prompts are not causal.
    """

    def __init__(
        self, server_args: ServerArgsLike, gpu_id: int, nccl_port: int, target_worker: WorkerLike, **_: Any
    ) -> None:
        super().__init__()
        self._target_worker = target_worker
        self._draft_worker = None
        self._serving = serving = load_serving(server_args)
        self.model_runner = target_worker.model_runner
        self.device = target_worker.device
        self.max_width = serving.config.routing.max_width
        # Read by SGLang, which sizes reserves and metrics with them.
        self.speculative_num_draft_tokens = self.max_width
        self.speculative_num_steps = 1
        self.topk = 1

        # What is left to SGLang's runner is prefill and plain decode, whose graphs it captures then.
        self.model_runner.spec_algorithm = SpeculativeAlgorithm.NONE
        set_prefill_graphs(server_args)
        self.model_runner.sampler = DlmSampler(serving.token_choice)
        model = self.model_runner.model
        # A request's last block reaches past the context, and so do the step that SGLang overlaps with it and the masks
        # behind a chain.
        model.extend_rotary_cache(self.model_runner.model_config.context_len + 3 * self.max_width)
        adapter_folder = serving.checkpoint.draft_adapter(serving.config.lora.draft_adapter)
        if adapter_folder is not None:
            model.load_draft_adapter(adapter_folder)
        # Allocated here, before SGLang gives the KV cache what memory is left: SGLang admits no more requests, and has
        # one row that none uses.
        most, vocab_size = server_args.max_running_requests, serving.checkpoint.vocab_size
        assert most is not None, "`defaults` sets it"
        interval, min_rows = server_args.prefill_decode_interval or 1, server_args.prefill_decode_interval_min_bs
        self._prefill_interval = PrefillInterval(interval, min_rows)
        self._answer_counts = torch.zeros(most + 1, vocab_size, dtype=torch.int32, device=self.device)

    @property
    def draft_worker(self) -> None:
        """Return None: drafts come from the target model itself."""
        return None

    def __getattr__(self, name: str) -> Any:
        if name == "_target_worker":
            raise AttributeError(name)
        return getattr(self._target_worker, name)

    def init_attention_backends(self) -> None:
        """Add block attention to the backend that SGLang has just chosen for the target."""
        runner = self.model_runner
        chosen = runner.attn_backend
        runner.attn_backend = DlmAttentionBackend(runner, chosen, self._serving.commit)
        # SGLang's models ask the backend under which names it was chosen.
        runner.attn_backend.prefill_attention_backend_str = chosen.prefill_attention_backend_str
        runner.attn_backend.decode_attention_backend_str = chosen.decode_attention_backend_str
        runner.kv_index_translator.bind_and_verify_backends([runner.attn_backend, runner.decode_attn_backend])

    def init_cuda_graphs(self) -> None:
        """Set up the state of all requests and, where SGLang captures its decode graphs, ours of block steps."""
        serving, runner = self._serving, self.model_runner
        commit, choice, block_size = serving.commit, serving.token_choice, serving.checkpoint.block_size
        num_requests, mask = runner.req_to_token_pool.req_to_token.shape[0], choice.mask_token_id
        assert num_requests <= len(self._answer_counts), "SGLang has rows for more requests than it admits"
        self.table = Rows.table(num_requests, self.max_width, mask, self.device)
        eager = BlockStep(runner, self.table, commit, choice)
        windows = DraftWindows(eager, runner, commit, mask)
        step: Step = eager
        if runner.decode_cuda_graph_capture_bs:
            from dlm_serve.sglang.engine.block_graphs import BlockGraphs

            routing = serving.config.routing
            step = BlockGraphs.capture(eager, runner, routing, serving.widths, serving.budgets)
        decode = DecodeForward(self._target_worker, self.table)
        self._extend_step = ExtendStep(self._target_worker, self.table, self._answer_counts, commit, mask, block_size)
        logits = LogitStep(self.table, commit, choice, serving.checkpoint.vocab_size)
        self._step = step
        self._decode_step = DecodeStep(step, decode, windows, logits, mask)
        costs = self._costs(step, decode, num_requests - 1)
        self._planner = StepPlanner(commit, costs.table, self.table.width, self.device)
        self._timer: StepTimer[Any] = EventTimer() if self.device == "cuda" else HostTimer()
        self._first = serving.choices[0] if serving.choices else None
        self.router = make_router(serving, costs, num_requests, self._prefill_interval)
        self._log = RoutingLog()

    def _costs(self, step: Step, decode: DecodeForward, max_rows: int) -> CostModel:
        """Return what forwards cost: measured where graphs are captured, else learned as they run."""
        widths = sorted({*self._serving.widths, *self._serving.budgets})
        if not isinstance(step, BlockStep):
            from dlm_serve.sglang.engine.measure_costs import CostMeasurement, measured_costs

            measurement = CostMeasurement(step, decode, self.table, self.model_runner)
            return MeasuredCosts(measured_costs(measurement, self.model_runner, widths, step.captured_rows, max_rows))
        return LearnedCosts([*widths, MAX_BUDGET], max_rows)  # no row is too wide

    def is_decision_due(self, num_reqs: int) -> bool:
        """Return whether to decide before the next step, which is over `num_reqs` requests. For the first rank alone.

        It looks at all steps and prefills that have ended, and waits for none.
        """
        for shape, ms in self._timer.finished():
            if isinstance(shape, PrefillShape):
                self.router.observe_prefill(shape, ms)
            else:
                self.router.observe(shape, ms)
                count_step_time(shape, self._planner.costs.width_of(shape), ms)
        return self.router.is_due(self._planner.num_steps, num_reqs)

    def decide(self, reqs: Sequence[ReqLike]) -> Decision | None:
        """Return what the router changes about SGLang's `reqs`, which run; None if nothing. See `is_decision_due`."""
        decision = self.router.decide(running(reqs), self._planner.num_steps, METER.num_decoded)
        self._log.note(self.router)
        return decision

    def pin(self, choice: Choice | None) -> None:
        """Let requests with mode `auto` decode so from the next decision on; None leaves it to the router again."""
        self.router.pin(None if choice is None else PinnedPolicy(self._serving.choices, choice))

    def captured(self) -> dict[str, int]:
        """Return up to how many rows of each width a CUDA graph runs; 0 where none does."""
        return {str(width): self._step.captured_rows(width) for width in self._planner.costs.widths}

    def apply(self, decision: Decision, reqs: Sequence[ReqLike]) -> None:
        """Let SGLang's `reqs`, which run, go on as was decided, and those that come begin so. For every rank."""
        self._first = decision.first
        if decision.costs is not None:
            self._planner.costs = decision.costs
        changed = [req for req in reqs if req.rid in decision.choices]
        for req in changed:
            state_of(req).go_on_as(decision.choices[req.rid])
        self._planner.switch(changed)
        self._planner.forget()

    def forward_batch_generation(
        self,
        batch: BatchLike,
        on_publish: Publish | None = None,
        grammar_barrier: Barrier = lambda: None,
        **_: Any,
    ) -> Any:
        """Run one EXTEND call or one decode step of SGLang's `batch`.

        `grammar_barrier` brings grammars behind the steps before it, where SGLang has not done so already.
        """
        result = self._extend(batch) if batch.forward_mode.is_extend() else self._decode(batch, grammar_barrier)
        if on_publish is not None:
            on_publish(result.new_seq_lens)
        return result

    def _extend(self, batch: BatchLike) -> Any:
        """Prefill, and set up the rows of the requests."""
        with self._timer.prefill(PrefillShape(len(batch.reqs), sum(batch.extend_lens))):
            result = self._extend_step.run(batch, self._first)
        self._planner.begin(batch.reqs)
        return result

    def _decode(self, batch: BatchLike, barrier: Barrier) -> Any:
        """Run one step of all rows; only for grammars it waits, for the step before."""
        number = self._planner.num_steps
        planned = self._planner.plan(batch.reqs)
        self._timer.begin_step()
        result = self._decode_step.run(batch, planned, number, barrier)
        if planned.history is not None:
            self._keep(planned.history, batch)
        self._timer.end_step(planned.shape)
        return result

    def _keep(self, group: RowGroup, batch: BatchLike) -> None:
        """Take down what a step has left of the blocks of some requests."""
        snapshot = Snapshot.of(self.table, group.of(batch.req_pool_indices.long()))
        for row, state in enumerate(group.states):
            assert state.history is not None
            state.history.launch(snapshot, row)
