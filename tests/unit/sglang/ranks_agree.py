"""Run by test_agreement.py: two ranks whose logits differ, as rounding might make them, start the same requests.

Prints a JSON object: for each case what becomes of them on each rank, where it goes its own way and where they agree.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from sglang.srt.distributed.parallel_state import GroupCoordinator

from dlm_serve.decoding import (
    AttentionSpec,
    DecodePlan,
    FirstBlock,
    Mode,
    ModeSettings,
    Prediction,
    RequestState,
    Rows,
)
from dlm_serve.families import BD3LM, EFFICIENT_DLM, SDLM, Family
from dlm_serve.sglang import agreement, draft_windows, first_block
from dlm_serve.sglang.block_step import BlockStep
from dlm_serve.sglang.draft_windows import DraftWindows
from dlm_serve.sglang.first_block import FirstBlocks

NUM_RANKS, NUM_REQUESTS = 2, 3
MASK, VOCAB_SIZE, BLOCK_LENGTH = 3, 32, 8
INDICES = torch.arange(1, NUM_REQUESTS + 1)

CASES: dict[str, tuple[Family, str | None, bool]] = {
    "blocks by confidence": (EFFICIENT_DLM, None, False),
    "blocks by chance": (EFFICIENT_DLM, None, True),
    "blocks in a random order": (BD3LM, "first_hitting", True),
    "windows": (SDLM, "prob_conf", False),
    "windows by entropy": (SDLM, "entropy_conf", False),
    "drafts": (SDLM, "self_speculative", False),
    "drafts by chance": (SDLM, "self_speculative", True),
}
"""Family, algorithm, and whether tokens are sampled: all that EXTEND calls may decide."""


class Step(BlockStep):
    """A step whose logits are drawn anew for each forward, by tokens, positions and rank."""

    def __init__(self, rank: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._rank = rank

    def run(
        self,
        rows: Rows,
        indices: torch.Tensor,
        spec: AttentionSpec,
        on_slots_read: Callable[[], None] | None = None,
    ) -> tuple[torch.Tensor, Prediction]:
        seed = int((rows.tokens * spec.positions).sum()) * NUM_RANKS + self._rank
        logits = 3 * torch.randn(*rows.tokens.shape, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))
        return logits, self.choice.predict(logits, spec.predicted_positions, rows)


def started(rank: int, family: Family, algorithm: str | None, sampled: bool) -> dict[str, Any]:
    """What an EXTEND call of some requests leaves on this rank."""
    commit, choice = family.commit, family.token_choice(MASK)
    settings = ModeSettings(Mode.DIFFUSION, BLOCK_LENGTH, 0.5, BLOCK_LENGTH, algorithm=algorithm)
    table = Rows.table(NUM_REQUESTS + 1, commit.row_width(BLOCK_LENGTH), MASK, "cpu")
    options = [commit.row_options(settings, seed, (), VOCAB_SIZE) for seed in range(NUM_REQUESTS)]
    if sampled:
        options = [replace(option, top_k=VOCAB_SIZE, top_p=0.9) for option in options]
    table.scatter_(INDICES, Rows.of(options, table.width))
    states = [RequestState(DecodePlan((settings,)), seed) for seed in range(NUM_REQUESTS)]
    params = SimpleNamespace(max_new_tokens=100, ignore_eos=True)
    reqs: Sequence[Any] = [SimpleNamespace(dlm_state=s, output_ids=[], sampling_params=params) for s in states]
    runner: Any = SimpleNamespace(shared_read_done_event=None)
    step = Step(rank, runner, table, commit, choice)
    if family is SDLM:
        blocks = [FirstBlock(10 + i, [4 + i], num_given=1) for i in range(NUM_REQUESTS)]
        pending = DraftWindows(step, runner, commit, choice).start(reqs, INDICES, blocks)
    else:
        blocks = [FirstBlock(16, [], num_given=0) for _ in range(NUM_REQUESTS)]
        pending = FirstBlocks(step, table, commit, choice).start(reqs, INDICES, blocks)
    rows = table.gather(INDICES)
    return {
        "pending": pending.tolist(),
        "tokens": [ids[:length] for ids, length in zip(rows.tokens.tolist(), rows.new_len.tolist(), strict=True)],
        "phases": rows.phase.tolist(),
        "forwards": [state.num_extend_forwards for state in states],
    }


@contextmanager
def alone() -> Iterator[None]:
    """Let each rank go its own way within this context."""
    with mock.patch.object(first_block, "agree_on"), mock.patch.object(draft_windows, "agree_on"):
        yield


def run(rank: int, folder: str) -> None:
    """Write what all cases come to on this rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", world_size=NUM_RANKS, rank=rank)
    group = GroupCoordinator([list(range(NUM_RANKS))], rank, "gloo", *[False] * 6)
    found: dict[str, list[dict[str, Any]]] = {}
    with mock.patch.object(agreement, "get_parallel", return_value=SimpleNamespace(tp_group=group)):
        for name, case in CASES.items():
            with alone():
                found[name] = [started(rank, *case)]
            found[name].append(started(rank, *case))
    Path(folder, str(rank)).write_text(json.dumps(found))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        fork = multiprocessing.get_context("fork")
        processes = [fork.Process(target=run, args=(rank, folder)) for rank in range(NUM_RANKS)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        ranks = [json.loads(Path(folder, str(rank)).read_text()) for rank in range(NUM_RANKS)]
    sys.stdout.write("\n" + json.dumps({name: [rank[name] for rank in ranks] for name in CASES}) + "\n")
