"""Run by test_sdlm_logits.py in a process of its own: SDLM's logits against the reference's.

The model is loaded by SGLang's own runner; rows are laid out and run by the same functions as in the server. Each
call of the reference encodes the tokens that are new, among them the last, and the window behind them; here a row
is what follows the last token but one that is encoded, so that the KV that earlier rows kept is read, too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from in_process import model_runner_of

from dlm_serve.decoding import Mode, ModeSettings, Rows
from dlm_serve.sglang.engine.attention import DlmAttentionBackend
from dlm_serve.sglang.engine.block_step import BlockStep
from dlm_serve.sglang.serving import current

DATA = Path(__file__).parent.parent / "data" / "sdlm"
ROW, MAX_LEN = 1, 512
LOGIT_ERROR = 1e-4

Case = dict[str, Any]


class Windows:
    """The rows of one request at a time."""

    def __init__(self, model: Path) -> None:
        runner = model_runner_of(model)
        checkpoint = current().checkpoint
        self._commit, self._mask = checkpoint.family.commit, checkpoint.mask_token_id
        choice = checkpoint.family.token_choice(self._mask)
        if not isinstance(runner.attn_backend, DlmAttentionBackend):
            runner.attn_backend = DlmAttentionBackend(runner, runner.attn_backend, self._commit)
        slot_table = runner.req_to_token_pool.req_to_token
        slot_table[ROW, :MAX_LEN] = torch.arange(1, MAX_LEN + 1)
        table = Rows.table(slot_table.shape[0], 1, self._mask, "cpu")
        self._step = BlockStep(runner, table, self._commit, choice)

    def logits_behind(self, tokens: list[int], start: int, block_length: int) -> torch.Tensor:
        """[D, V] of the window behind `tokens` at positions `start` and on; keeps their KV but for the last."""
        width = len(tokens) + block_length - 1
        settings = ModeSettings(Mode.DIFFUSION, block_length, 1.0)
        rows = Rows.of([self._commit.row_options(settings, 0, (), 0)], width)
        row = torch.tensor([[*tokens, *[self._mask] * (block_length - 1)]])
        rows = rows.with_block(row, torch.tensor([len(tokens)], dtype=torch.int32))
        rows = rows.replace(new_len=torch.tensor([width], dtype=torch.int32))
        committed = torch.tensor([start + len(tokens) - 1])
        spec = self._commit.attention_spec(rows, committed, self._mask)
        logits, _ = self._step.run(rows, torch.tensor([ROW]), spec)
        return logits[0, -block_length:]


def check(windows: Windows, case: Case, recorded: Any) -> str | None:
    """What is wrong with a case, if anything is."""
    sequence: list[int] = []
    for call in case["calls"]:
        num_new = len(call["input_ids"]) - case["n_future_tokens"]
        sequence = sequence[: call["past_len"]] + call["input_ids"][:num_new]
        start = max(0, call["past_len"] - 1)
        ours = windows.logits_behind(sequence[start:], start, case["n_future_tokens"])
        error = (ours - torch.from_numpy(recorded[call["key"]])).abs().max().item()
        if error > LOGIT_ERROR:
            return f"call {call['call']}: logits differ by {error}"
    return None


def main(variant: str) -> None:
    windows = Windows(DATA / variant)
    recorded = np.load(DATA / f"forward_{variant}.npz")
    cases = [case for case in json.loads((DATA / "forward_cases.json").read_text()) if case["variant"] == variant]
    wrong = {case["id"]: result for case in cases if (result := check(windows, case, recorded))}
    sys.stdout.write(f"{len(cases) - len(wrong)} of {len(cases)} cases agree\n")
    for name, result in wrong.items():
        sys.stderr.write(f"{name}: {result}\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(sys.argv[1])
