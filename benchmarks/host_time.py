"""Measure the time that the host spends on a decode step, without its forwards. Needs no GPU.

    python benchmarks/host_time.py [--num-requests 256] [--write]

Everything between SGLang's batch and its result is real: planning, row indices, token choice, merging. The forwards
over the model are replaced by tensors that are there already. The router is timed beside it, in a simulated load, and
what it takes to let a crowd go on in another way. The file is `host_time.json`, or `host_time_cpu.json` without a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import numpy as np
import torch
from report import write
from router_sim import WAYS, measured_card
from router_simulation import Simulation, measured
from sglang.srt.layers.sampler import Sampler
from simulated_texts import ChanceText

from dlm_serve.decoding import (
    DecodePlan,
    Mode,
    ModeSettings,
    Prediction,
    RequestState,
    Rows,
    StepOutput,
    TokenChoice,
)
from dlm_serve.families import NEMOTRON_LABS_DIFFUSION
from dlm_serve.routing.costs import LearnedCosts
from dlm_serve.sglang.engine.block_step import BlockForward
from dlm_serve.sglang.engine.decode_step import DecodeStep
from dlm_serve.sglang.engine.logit_step import LogitStep
from dlm_serve.sglang.engine.planned_step import StepPlanner
from dlm_serve.sglang.engine.sampler import DlmSampler

WIDTH, VOCAB_SIZE, MASK = 8, 32, 3
COMMIT = NEMOTRON_LABS_DIFFUSION.commit
CHOICE = TokenChoice(MASK)

CASES: dict[str, Callable[[int], list[Any]]] = {
    "all self_speculation": lambda n: [Mode.SELF_SPECULATION] * n,
    "all autoregressive": lambda n: [Mode.AUTOREGRESSIVE] * n,
    "one block among autoregressive": lambda n: [Mode.SELF_SPECULATION, *[Mode.AUTOREGRESSIVE] * (n - 1)],
}


class Forwards:
    """In place of block and decode forwards: results of the right shapes."""

    def captured_rows(self, width: int) -> int:
        """Return 0: nothing is captured."""
        return 0

    def forward(self, indices: torch.Tensor, committed_lens: torch.Tensor, width: int) -> BlockForward:
        """Return a block forward over nothing."""
        size = (len(indices), width)
        ids = torch.zeros(size, dtype=torch.int64)
        emitted = StepOutput(ids, torch.ones(size[0], dtype=torch.int32))
        prediction = Prediction(ids, torch.zeros(size), torch.zeros(size), ids)
        return BlockForward(torch.zeros(*size, VOCAB_SIZE), prediction, True, lambda: emitted)


def decode_forward(table: Rows) -> Any:
    """Return SGLang's decode without its forward; the sampler is the real one."""
    from dlm_serve.sglang.engine.decode_forward import DecodeForward

    with mock.patch.object(Sampler, "__init__", torch.nn.Module.__init__):  # which asks for process groups
        sampler = DlmSampler(CHOICE)
    sampler._sync_token_ids_across_tp = mock.Mock()
    sampler._preprocess_logits = lambda logits, _: logits
    runner = SimpleNamespace(sampler=sampler)
    decode = DecodeForward(SimpleNamespace(model_runner=runner), table)
    vars(decode)["logits"] = lambda indices, *_: (torch.zeros(len(indices), VOCAB_SIZE), True)
    return decode


def batch_of(modes: list[Any]) -> Any:
    """Return a batch of greedy requests in these modes, as SGLang hands it over."""
    number = len(modes)
    plans = [DecodePlan((ModeSettings(mode, 1 if mode is Mode.AUTOREGRESSIVE else WIDTH, 0.0),)) for mode in modes]
    sampling_info = SimpleNamespace(
        temperatures=torch.ones(number, 1),
        top_ks=torch.ones(number, dtype=torch.int32),
        top_ps=torch.ones(number),
        min_ps=torch.zeros(number),
        is_all_greedy=True,
        has_custom_logit_processor=False,
    )
    return SimpleNamespace(
        reqs=[SimpleNamespace(dlm_state=RequestState(plan), grammar=None, return_logprob=False) for plan in plans],
        req_pool_indices=torch.arange(1, number + 1),
        seq_lens=torch.full((number,), 100),
        seq_lens_cpu=None,
        sampling_info=sampling_info,
        return_logprob=False,
        top_logprobs_nums=[],
        token_ids_logprobs=[],
    )


def milliseconds_per_step(modes: list[Any], repeats: int = 5, steps: int = 200) -> float:
    """Return the median of `repeats` of the mean time of so many steps."""
    table = Rows.table(len(modes) + 1, WIDTH, MASK, "cpu")
    logits = LogitStep(table, COMMIT, CHOICE, VOCAB_SIZE)
    step = DecodeStep(Forwards(), decode_forward(table), mock.Mock(), logits, MASK)
    planner = StepPlanner(COMMIT, LearnedCosts((WIDTH,), len(modes)).table, WIDTH, "cpu")
    batch = batch_of(modes)

    def run() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            step.run(batch, planner.plan(batch.reqs), planner.num_steps, lambda: None)
        return (time.perf_counter() - start) * 1000 / steps

    run()
    return statistics.median(run() for _ in range(repeats))


def milliseconds_of_moving(num_requests: int = 128, repeats: int = 20) -> float:
    """Return the median time of planning a step with which as many requests go on in another way."""
    drafted, one_by_one = ModeSettings(Mode.SELF_SPECULATION, WIDTH, 0.0), ModeSettings(Mode.AUTOREGRESSIVE, 1, 0.0)
    greedy = SimpleNamespace(temperature=1.0, top_k=1, top_p=1.0, min_p=0.0)
    states = [RequestState(DecodePlan((one_by_one, drafted))) for _ in range(num_requests)]
    reqs: list[Any] = [
        SimpleNamespace(dlm_state=state, sampling_params=greedy, grammar=None, return_logprob=False) for state in states
    ]
    planner = StepPlanner(COMMIT, LearnedCosts((WIDTH,), num_requests).table, WIDTH, "cpu")
    planner.begin(reqs)
    times = []
    for way, steps_per_block in ((drafted, 2), (one_by_one, 1)) * (repeats // 2):
        for state in states:
            state.go_on_as(way.choice)
        planner.switch(reqs)
        start = time.perf_counter()
        moved = planner.plan(reqs).offer
        times.append(time.perf_counter() - start)
        assert moved is not None
        assert len(moved.rows) == num_requests
        for step in range(1, steps_per_block + 1):
            if step > 1:
                planner.plan(reqs)
            for state in states:
                state.end_step(int(step == steps_per_block))
    return 1000 * statistics.median(times)


def microseconds_of_deciding(chance: float, num_requests: int = 128, num_steps: int = 2000) -> float:
    """Return the mean time per step that the router takes, decisions between steps spread over them.

    It weighs all that a server has by default, though with so many requests none speculates in one forward. Answers
    have some 256 tokens, and drafts are right with a `chance`. Where they pay, the router has blocks to read as well.
    """
    simulation = Simulation(measured_card(), measured(drafts=WAYS), drafts=WAYS)
    random, seconds = np.random.default_rng(1), 0.0
    for _ in range(num_steps):
        simulation.keep(num_requests, lambda: ChanceText(chance, max(8, int(random.exponential(256)))))
        start = time.perf_counter()
        simulation.decide()
        seconds += time.perf_counter() - start
        simulation.step()
    return 1e6 * seconds / num_steps


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num-requests", type=int, default=256)
    parser.add_argument("--write", action="store_true", help="keep the figures in benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    timed = {name: round(milliseconds_per_step(modes(options.num_requests)), 4) for name, modes in CASES.items()}
    for name, value in timed.items():
        print(f"{name:32} {value:.3f} ms per step of {options.num_requests}")
    deciding, reading = (round(microseconds_of_deciding(chance), 1) for chance in (0.8582, 0.985))
    print(f"{'the router':32} {deciding} us per step of 128, {reading} where they speculate")
    checkpoint = SimpleNamespace(checkpoint=SimpleNamespace(vocab_size=VOCAB_SIZE))
    with mock.patch("dlm_serve.sglang.engine.requests.current", return_value=checkpoint):
        moving = round(milliseconds_of_moving(), 3)
    print(f"{'another way for 128 requests':32} {moving:.3f} ms")
    if options.write:
        figures = {
            "num_requests": options.num_requests,
            "ms_per_step": timed,
            "deciding_us_per_step_of_128": deciding,
            "deciding_us_per_step_of_128_that_speculate": reading,
            "ms_to_move_128": moving,
        }
        write("host_time" if torch.cuda.is_available() else "host_time_cpu", figures, "torch", "sglang")


if __name__ == "__main__":
    main()
